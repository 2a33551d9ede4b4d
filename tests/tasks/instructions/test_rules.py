"""Kinds and shares, prompts, parsing of replies, refusals, near duplicates, samples."""

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import UserError
from tasks.instructions import (
    Described,
    Job,
    Pair,
    PlacedObject,
    assign_kinds,
    llava_sample,
    load_prompts,
    near_duplicates,
    parse_reply_json,
    parse_text,
    refusal,
    vocabulary,
)
from tasks.instructions.duplicates import runs_of_words
from tasks.instructions.kinds import KINDS, PUBLISHED, Kind, count_kinds, parse_shares
from tasks.instructions.prompts import OWN, ReplyFormat
from tasks.instructions.reply import UnusableReplyError, as_json
from tasks.instructions.validate import Limits

WHOLE = (0.0, 0.0, 1.0, 1.0)


def pictures(n: int) -> list[Described]:
    return [Described(str(i), f"{i}.jpg", ("A dog.",)) for i in range(n)]


def test_the_published_shares_give_the_published_counts_and_are_the_default() -> None:
    assert count_kinds(parse_shares("58:23:77"), 158_000) == {kind: 1000 * n for kind, n in PUBLISHED.items()}


@given(st.tuples(*[st.integers(0, 99)] * 3).filter(any), st.integers(0, 500))
def test_counts_are_within_one_of_the_shares_and_add_up(shares: tuple[int, int, int], n: int) -> None:
    counts = count_kinds(dict(zip(KINDS, shares, strict=True)), n)
    assert sum(counts.values()) == n
    assert all(abs(counts[k] - n * share / sum(shares)) < 1 for k, share in zip(KINDS, shares, strict=True))


def test_each_picture_gets_a_kind_at_most_once_and_pictures_are_used_equally_often() -> None:
    shares = parse_shares("2:1:1")
    jobs = assign_kinds(pictures(10), 18, shares=shares, seed=3)
    assert Counter(job.kind for job in jobs) == {"conversation": 9, "detail": 5, "reasoning": 4}
    assert len({job.id for job in jobs}) == 18
    assert set(Counter(job.picture.id for job in jobs).values()) == {1, 2}
    assert jobs == assign_kinds(pictures(10), 18, shares=shares, seed=3)
    assert jobs != assign_kinds(pictures(10), 18, shares=shares, seed=4)
    with pytest.raises(UserError, match="at most one conversation a picture, got 11 for 10"):
        assign_kinds(pictures(10), 22, shares=shares, seed=3)


@pytest.mark.parametrize("text", ["58:23", "1:2:x", "0:0:0", "-1:2:3", "1:2:3:4", "", "1.5:1:1"])
def test_shares_of_another_form_are_errors(text: str) -> None:
    with pytest.raises(UserError, match="shares must"):
        parse_shares(text)


def test_messages_are_system_examples_and_the_picture_with_boxes_only_where_llava_has_them() -> None:
    picture = Described("1", "1.jpg", ("A dog.",), (PlacedObject("dog", WHOLE),))
    prompts = load_prompts()
    forms: tuple[ReplyFormat, ...] = ("json", "text")
    for kind, form in itertools.product(KINDS, forms):
        messages = prompts[kind].messages(picture, form)
        roles = [message.role for message in messages]
        assert roles == ["system", *["user", "assistant"] * len(prompts[kind].shots), "user"]
        assert ("dog: [" in messages[-1].content) == (kind != "conversation")
        parse = parse_reply_json if form == "json" else parse_text
        for message in messages[2:-1:2]:  # our own examples pass our own rules
            pairs = parse(message.content, kind)
            assert refusal(pairs, kind, picture, names=frozenset()) == ""
        assert ("JSON" in messages[0].content) == (form == "json")
        assert (prompts[kind].schema(form) is not None) == (form == "json")


def test_a_folder_in_llavas_layout_replaces_the_prompts(tmp_path: Path) -> None:
    folder = tmp_path / "conversation"
    folder.mkdir()
    (folder / "system_message.txt").write_text("Be brief.\n")
    kinds: tuple[Kind, ...] = ("conversation",)
    assert load_prompts(tmp_path, kinds)["conversation"].shots == ()
    (folder / "000_caps.txt").write_text("A dog.")
    with pytest.raises(UserError, match=r"conversation/000_conv\.txt"):
        load_prompts(tmp_path, kinds)
    (folder / "000_conv.txt").write_text("Question: What is it?\n===\nAnswer: A dog.")
    system, user, reply, _ = load_prompts(tmp_path, kinds)["conversation"].messages(pictures(1)[0], "json")
    assert system.content.startswith("Be brief.\n\nReply with a JSON object only")
    assert (user.content, json.loads(reply.content)["turns"]) == (
        "A dog.", [{"question": "What is it?", "answer": "A dog."}]
    )  # fmt: skip
    (folder / "000_conv.txt").write_text("What is it? A dog.")
    with pytest.raises(UserError, match="examples must be in the text format"):
        load_prompts(tmp_path, kinds)
    (folder / "000_conv.txt").unlink()
    (folder / "000_caps.txt").unlink()
    with pytest.raises(UserError, match=r"detail_description/system_message\.txt"):
        load_prompts(tmp_path)
    (folder / "system_message.txt").write_text(" \n")
    with pytest.raises(UserError, match="must not be empty"):
        load_prompts(tmp_path, kinds)


def test_the_prompts_are_files_of_the_package() -> None:
    assert len(list(OWN.glob("*/*.txt"))) == 3 + 2 * 4


TURN = '{"question": "What is it?", "answer": "A dog."}'


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "A dog.", '{"turns": 3}', '{"turns": [3]}', '{"turns": [{"question": "a"}]}', '{"description": 3}',
     f'{{"turns": [{TURN}], "more": 1}}', f'```json\n{{"turns": [{TURN}]}}\n```',
     '{"turns": [{"question": "a", "answer": 3}]}', '{"description": "a", "description": "b"}'],
)  # fmt: skip
def test_json_that_is_not_the_schema_is_refused(kind: Kind, text: str) -> None:
    with pytest.raises(UnusableReplyError):
        parse_reply_json(text, kind)


@pytest.mark.parametrize(
    "text",
    ["", "A dog.", "Question:\na", "Question:\na\n===", "Answer:\nb\n===\nQuestion:\na", "Question: a\nAnswer: b",
     "Question:\na\n===\nAnswer:\nb\n===\nQuestion:\nc", "Sure!\nQuestion:\na\n===\nAnswer:\nb"],
)  # fmt: skip
def test_text_that_is_not_in_blocks_is_refused(text: str) -> None:
    with pytest.raises(UnusableReplyError):
        parse_text(text, "conversation")


words = st.text(st.characters(codec="utf-8", exclude_characters="=", exclude_categories=["C", "Z"]), min_size=1)


@settings(max_examples=25)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_both_formats_hold_the_same_turns(turns: list[tuple[str, str]]) -> None:
    text = "\n===\n".join(f"Question:\n{question}\n===\nAnswer:\n{answer}" for question, answer in turns)
    expected = tuple(Pair(*turn) for turn in turns)
    assert parse_text(text, "conversation") == expected
    assert parse_reply_json(as_json(text, "conversation"), "conversation") == expected


PICTURE = Described(
    "1", "1.jpg", ("A man holds a hot dog.", "Somebody at a bus stop."), (PlacedObject("hot dog", WHOLE),)
)
OTHERS = [
    Described(name, "x.jpg", ("A.",), (PlacedObject(name, WHOLE),))
    for name in ("dog", "bus", "cat", "knife", "person", "bench", "Wine Glass")
]
NAMES = vocabulary([PICTURE, *OTHERS])
GOOD = Pair("What does the man hold?", "He holds a hot dog.")
OTHER = Pair("Where is he?", "He stands at a bus stop.")


def said(kind: Kind, *pairs: Pair) -> str:
    return refusal(pairs, kind, PICTURE, names=NAMES)


def test_good_turns_are_not_refused() -> None:
    assert said("conversation", GOOD, OTHER) == ""
    assert said("reasoning", GOOD) == ""
    assert said("detail", Pair("", "A man holds a hot dog at a bus stop.")) == ""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("The caption mentions a hot dog.", "names its source (caption)"),
        ("According to the descriptions, he eats.", "names its source (according to the descriptions)"),
        ("Based on the given information, he eats.", "names its source (given information)"),
        ("The bounding boxes show that he is near.", "names its source (bounding boxes)"),
        ("The sentences say that he eats.", "names its source (the sentences say)"),
        ("He stands at [0.10, 0.20, 0.30, 0.40].", "numbers of places"),
        ("He stands at (12, 40, 90, 200).", "numbers of places"),
        ("He stands around 0.25, 0.75.", "numbers of places (0.25, 0.75)"),
        ("The coordinates are on the left.", "numbers of places (coordinates)"),
        ("I'm sorry, I cannot see the picture.", "the model declines (i'm sorry)"),
        ("As an AI model I do not eat.", "the model declines (as an ai)"),
        ("<image> He eats.", "marks of the format in a text (<image>)"),
        ("He eats.\nQuestion: what?", "marks of the format in a text (question:)"),
        ("He eats.\n===", "marks of the format in a text (===)"),
        ("", "an empty question or answer"),
        ("x" * 4001, "a text of 4001 characters"),
    ],
)
def test_each_rule_refuses_with_its_reason(answer: str, reason: str) -> None:
    for kind, pairs in (
        ("conversation", (GOOD, Pair("What then?", answer))),
        ("reasoning", (Pair("Why?", answer),)),
        ("detail", (Pair("", answer),)),
    ):
        assert refusal(pairs, kind, PICTURE, names=NAMES).startswith(reason)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "answer",
    ["He costs 3.50 and 4.25.", "The captain of the boat waves.", "There are 12, 40 or more.", "He boxes with him.",
     "A description of the dish hangs there.", "He wears 0.5 glasses."],
)  # fmt: skip
def test_words_that_only_look_alike_are_not_refused(answer: str) -> None:
    assert said("reasoning", Pair("Why?", answer)) == ""


def test_numbers_of_turns() -> None:
    assert said("conversation", GOOD) == "wrong number of turns (1)"
    assert said("conversation", *[GOOD] * 11) == "wrong number of turns (11)"
    assert said("reasoning", GOOD, OTHER) == "wrong number of turns (2)"
    assert said("reasoning") == "wrong number of turns (0)"
    assert refusal((GOOD,), "conversation", PICTURE, names=NAMES, limits=Limits(fewest_turns=1)) == ""
    assert said("conversation", GOOD, GOOD._replace(question="what does THE man hold")) == "asks the same twice"


@pytest.mark.parametrize(
    ("question", "answer", "conversation", "reasoning"),
    [
        ("What does the dog eat?", "A bone.", "dog", "dog"),  # a hot dog is no dog
        ("Are there any dogs?", "No, there are none.", "", "dog"),
        ("Is there a cat?", "Yes, there is.", "cat", "cat"),
        ("Are there knives?", "Yes, two.", "knife", "knife"),
        ("How many benches are there?", "Two.", "bench", "bench"),
        ("Is the wine glass full?", "Yes.", "wine glass", "wine glass"),
        ("Does he wait for the bus?", "Yes, at the stop.", "", ""),  # in a caption
        ("Is the person hungry?", "Yes.", "", ""),  # captions call people by other words
        ("Is it a catalogue?", "Yes.", "", ""),
    ],
)
def test_a_question_about_what_is_not_there(question: str, answer: str, conversation: str, reasoning: str) -> None:
    pair = Pair(question, answer)
    expected = {name: f"asks about what is not there ({name})" if name else "" for name in (conversation, reasoning)}
    assert said("conversation", GOOD, pair) == expected[conversation]
    assert said("reasoning", pair) == expected[reasoning]


def brute_force(texts: list[str], threshold: float) -> dict[int, int]:
    found: dict[int, int] = {}
    for i, text in enumerate(texts):
        for j in range(i):
            a, b = runs_of_words(text), runs_of_words(texts[j])
            if j not in found and len(a & b) / len(a | b) >= threshold:
                found[i] = j
                break
    return found


@given(
    st.lists(st.lists(st.sampled_from(list("abcd")), min_size=0, max_size=9).map(" ".join), max_size=14),
    st.sampled_from([0.01, 0.25, 0.5, 0.7, 0.75, 1.0]),
)
def test_near_duplicates_are_those_of_comparing_every_pair(texts: list[str], threshold: float) -> None:
    assert near_duplicates(texts, threshold) == brute_force(texts, threshold)


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01])
def test_a_threshold_out_of_range_is_an_error(threshold: float) -> None:
    with pytest.raises(UserError, match="duplicates must be in"):
        near_duplicates(["a"], threshold)


def test_samples_have_llavas_layout_with_the_picture_before_or_after_the_first_question() -> None:
    places, asked = Counter[bool](), set[str]()
    for i in range(40):
        job = Job(Described(str(i), f"{i}.jpg", ("A dog.",)), "conversation")
        sample = llava_sample(job, [GOOD, OTHER], seed=0)
        assert sample == llava_sample(job, [GOOD, OTHER], seed=0)
        first, *rest = sample["conversations"]
        assert (sample["image"], [turn["from"] for turn in rest]) == (f"{i}.jpg", ["gpt", "human", "gpt"])
        assert [turn["value"] for turn in rest] == [GOOD.answer, *OTHER]
        assert first["value"].replace("<image>", "").strip() == GOOD.question
        places[first["value"].startswith("<image>\n")] += 1
        described = llava_sample(job._replace(kind="detail"), [Pair("", "A dog.")], seed=0)
        asked.add(described["conversations"][0]["value"].replace("<image>", "").strip())
    assert min(places.values()) > 8  # 40 fair coins
    assert len(asked) > 5
