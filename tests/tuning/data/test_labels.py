"""Label masks against hand-made oracles: several turns, words alone, cut, empty answers, and LLaVA's own traps."""

import copy
import dataclasses
import re

import pytest
import torch
from torch.nn import functional as F

from models.inputs import prepare
from models.llava import Llava
from tasks.prompts import SYSTEM
from tests.conftest import make_examples, noise_picture
from tuning.data.conversation import Conversation, Turn, UnusableSampleError
from tuning.data.labels import IGNORED, Encoded, encode, measure
from tuning.data.prompt_format import PromptFormat
from tuning.data.samples import collate
from tuning.scoring.answers import model_inputs

PICTURE = (noise_picture(1),)


def chat(*turns: tuple[str, str], pictures: bool = True, apart: bool = False) -> Conversation:
    return Conversation("c", PICTURE if pictures else (), tuple(Turn(*turn) for turn in turns), apart=apart)


def oracle(llava: Llava, pieces: list[tuple[str, bool]]) -> tuple[list[int], list[int]]:
    """Ids and labels from pieces of text written down by hand with whether each is learned, tokenised one by one."""
    tokenizer = llava.tokenizer
    ids, labels = [tokenizer.bos_token_id], [IGNORED]
    for text, learned in pieces:
        own = tokenizer(text, add_special_tokens=False).input_ids
        for token in own:
            copies = llava.n_image_tokens if token == llava.image_token_id else 1
            ids += [token] * copies
            labels += [token if learned else IGNORED] * copies
    return ids, labels


def assert_equals(encoded: Encoded, expected: tuple[list[int], list[int]]) -> None:
    assert encoded.ids.tolist() == expected[0]
    assert encoded.labels.tolist() == expected[1]


def test_one_turn_equals_the_oracle_and_the_prompt_of_evaluation(llava: Llava) -> None:
    encoded = encode(llava, chat(("What is it?", "a cat")))
    pieces = [(f"{SYSTEM} USER: <image>\nWhat is it? ASSISTANT:", False), (" a cat</s>", True)]
    assert_equals(encoded, oracle(llava, pieces))
    example = dataclasses.replace(make_examples(1)[0], question="What is it?", answer="a cat")
    inputs = prepare(llava, [example], answers=True)
    assert encoded.ids.tolist() == inputs.input_ids[0].tolist()
    first = int((encoded.labels != IGNORED).nonzero()[0])
    assert first == inputs.layout[0].prompt_stop


def test_several_turns_learn_each_answer_and_nothing_else(llava: Llava) -> None:
    encoded = encode(llava, chat(("What is it?", "a cat"), ("Its colour?", "red"), ("Where?", "left")))
    pieces = [
        (f"{SYSTEM} USER: <image>\nWhat is it? ASSISTANT:", False),
        (" a cat</s>", True),
        ("USER: Its colour? ASSISTANT:", False),
        (" red</s>", True),
        ("USER: Where? ASSISTANT:", False),
        (" left</s>", True),
    ]
    assert_equals(encoded, oracle(llava, pieces))
    assert sorted(set(encoded.owner.tolist())) == [-1, 0, 1, 2]


def test_words_alone_have_no_image_tokens(llava: Llava) -> None:
    encoded = encode(llava, chat(("Two and two?", "four"), pictures=False))
    assert_equals(encoded, oracle(llava, [(f"{SYSTEM} USER: Two and two? ASSISTANT:", False), (" four</s>", True)]))
    assert llava.image_token_id not in encoded.ids


def test_a_cut_sample_learns_what_is_left(llava: Llava) -> None:
    whole = encode(llava, chat(("What is it?", "a cat and a dog"), ("Where?", "left")))
    length = int((whole.labels != IGNORED).nonzero()[0]) + 2
    cut = encode(llava, chat(("What is it?", "a cat and a dog"), ("Where?", "left")), max_length=length)
    assert cut.ids.tolist() == whole.ids[:length].tolist()
    assert cut.labels.tolist() == whole.labels[:length].tolist()
    assert cut.cut == len(whole) - length
    assert int((cut.labels != IGNORED).sum()) == 2


def test_cutting_never_leaves_a_sample_without_labels_or_half_a_picture(llava: Llava) -> None:
    sample = chat(("What is it?", "a cat"))
    whole = encode(llava, sample)
    first = int((whole.labels != IGNORED).nonzero()[0])
    with pytest.raises(UnusableSampleError, match="cut off before its first answer"):
        encode(llava, sample, max_length=first)
    inside = int((whole.ids == llava.image_token_id).nonzero()[0]) + 3
    with pytest.raises(UnusableSampleError, match=f"its picture does not fit into {inside} tokens"):
        encode(llava, sample, max_length=inside)
    with pytest.raises(UnusableSampleError, match=f"longer than the context: {len(whole)} tokens"):
        encode(llava, sample, max_length=len(whole) - 1, on_long="refuse")


def test_an_empty_answer_teaches_nothing_and_the_others_still_do(llava: Llava) -> None:
    encoded = encode(llava, chat(("One?", ""), ("Two?", "yes"), ("Three?", "")))
    pieces = [
        (f"{SYSTEM} USER: <image>\nOne? ASSISTANT:", False),
        ("</s>", False),
        ("USER: Two? ASSISTANT:", False),
        (" yes</s>", True),
        ("USER: Three? ASSISTANT:", False),
        ("</s>", False),
    ]
    assert_equals(encoded, oracle(llava, pieces))
    with pytest.raises(UnusableSampleError, match="nothing to learn: empty answers"):
        encode(llava, chat(("One?", ""), ("Two?", "")))


def test_an_answer_of_whitespace_is_labelled_as_in_llava(llava: Llava) -> None:
    encoded = encode(llava, chat(("One?", "  "), ("Two?", "\n")))
    pieces = [
        (f"{SYSTEM} USER: <image>\nOne? ASSISTANT:", False),
        ("   </s>", True),
        ("USER: Two? ASSISTANT:", False),
        (" \n</s>", True),
    ]
    assert_equals(encoded, oracle(llava, pieces))


def test_a_question_of_pictures_alone_gets_no_newline(llava: Llava) -> None:
    encoded = encode(llava, chat(("", "a cat")))
    assert_equals(encoded, oracle(llava, [(f"{SYSTEM} USER: <image> ASSISTANT:", False), (" a cat</s>", True)]))


def test_pictures_stand_at_the_beginning_of_their_own_turns(llava: Llava) -> None:
    sample = chat(("Hello.", "Show me."), ("What is it?", "a cat"))
    later = encode(llava, dataclasses.replace(sample, placed=(0, 0, 1, 0)))
    pieces = [
        (f"{SYSTEM} USER: Hello. ASSISTANT:", False),
        (" Show me.</s>", True),
        ("USER: <image>\nWhat is it? ASSISTANT:", False),
        (" a cat</s>", True),
    ]
    assert_equals(later, oracle(llava, pieces))
    answered = encode(llava, dataclasses.replace(sample, placed=(0, 0, 0, 1)))
    assert llava.tokenizer.decode(answered.labels[answered.labels != IGNORED]) == " Show me.</s> \na cat</s>"


def test_a_placeholder_in_a_sample_of_words_is_read_as_characters(llava: Llava) -> None:
    sample = chat(("What does <image> mean?", "It marks <image>."), pictures=False)
    encoded = encode(llava, sample)
    assert llava.image_token_id not in encoded.ids
    assert "What does <image> mean?" in llava.tokenizer.decode(encoded.ids)
    assert llava.tokenizer.decode(encoded.labels[encoded.labels != IGNORED]) == " It marks <image>.</s>"
    other = encode(llava, chat(("What does [image] mean?", "It marks [image]."), pictures=False))
    assert len(other) == len(encoded)  # one token a character in this vocabulary
    assert encode(llava, chat(("What?", "cat"))).ids.tolist().count(llava.image_token_id) == llava.n_image_tokens


def test_stage_1_keeps_the_spaces_of_a_caption(llava: Llava) -> None:
    encoded = encode(llava, chat(("Describe.", "  A red cat. \n")), recipe="plain")
    assert_equals(encoded, oracle(llava, [("<image>", False), ("  A red cat. \n\n", True)]))


def test_measuring_many_samples_equals_encoding_each(llava: Llava) -> None:
    samples = [
        chat(("What is it?", "a cat")),
        chat(("What is it?", "a cat"), ("Where?", "left"), apart=True),
        chat(("One?", "")),
        chat(("A <image>", "yes"), pictures=False),
        chat(("Say it.", "word " * 90), pictures=False),
        chat(("</s>", "yes")),
        chat(),
        chat(("\u00e9 \u732b", " \U0001f600\n"), ("", "\u732b\u732b"), (" \n", "\t a"), pictures=False),
        chat((" And  where", "\u00e9"), ("\u732b", " "), ("2 dogs", "  \n")),
    ]
    for on_long, longest in (("cut", 120), ("refuse", 120), ("cut", 2000)):
        found = measure(llava, samples, recipe="vicuna_v1", max_length=longest, on_long=on_long)  # type: ignore[arg-type]
        assert len(found) == len(samples)
        for sample, size in zip(samples, found, strict=True):
            if isinstance(size, UnusableSampleError):
                with pytest.raises(UnusableSampleError, match=re.escape(str(size))):
                    encode(llava, sample, max_length=longest, on_long=on_long)  # type: ignore[arg-type]
            else:
                encoded = encode(llava, sample, max_length=longest, on_long=on_long)  # type: ignore[arg-type]
                assert size == (len(encoded), int((encoded.labels != IGNORED).sum()), encoded.cut > 0)


def test_measuring_plain_samples_tokenises_them_in_one_call_and_looks_at_few_tokens(
    llava: Llava, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("samples are tokenised again, or all of their tokens are looked at")

    samples = [chat(("What is it?", "a cat"), ("\u00e9?", " \U0001f600")), chat(("Where?", "left"), pictures=False)]
    for name in ("_owners", "_measure_one", "encode"):
        monkeypatch.setattr(f"tuning.data.labels.{name}", refuse)
    found = measure(llava, samples, recipe="vicuna_v1", max_length=2048, on_long="cut")
    assert [type(size).__name__ for size in found] == ["Lengths", "Lengths"]


def test_no_turn_at_all_is_refused(llava: Llava) -> None:
    with pytest.raises(UnusableSampleError, match="no assistant turn"):
        encode(llava, chat())


def test_stage_1_learns_the_caption_and_its_newline_and_drops_the_question(llava: Llava) -> None:
    encoded = encode(llava, chat(("Describe the image concisely.", "A red cat.")), recipe="plain")
    assert_equals(encoded, oracle(llava, [("<image>", False), ("A red cat.\n", True)]))
    with pytest.raises(UnusableSampleError, match="stage 1 needs one picture, has 0"):
        encode(llava, chat(("Describe.", "A cat."), pictures=False), recipe="plain")


def original_masks(llava: Llava, sample: Conversation) -> list[int]:
    """How the original implementation finds answers: by splitting the text and counting tokens of the pieces."""
    tokenizer, sep = llava.tokenizer, " ASSISTANT: "
    text = SYSTEM + " " + "".join(f"USER: {t.question} ASSISTANT: {t.answer}</s>" for t in sample.turns)
    target = tokenizer(text).input_ids
    total, at = len(target), 1
    target[:at] = [IGNORED] * at
    for turn in text.split("</s>"):
        if not turn:
            break
        parts = turn.split(sep)
        if len(parts) != 2:
            break
        length, instruction = len(tokenizer(turn).input_ids), len(tokenizer(parts[0] + sep).input_ids) - 2
        target[at : at + instruction] = [IGNORED] * instruction
        at += length
    target[at:] = [IGNORED] * (total - at)
    return target if at == total else [IGNORED] * total  # a mismatch masks the whole sample with a warning


TRAPS = {
    "an answer that says ASSISTANT": (("Who speaks?", "It says ASSISTANT: hello"),),
    "a question that says ASSISTANT": (("What does ' ASSISTANT: ' mean?", "A turn."),),
    "answers with spaces at their ends": (("One?", " yes "), ("Two?", "no")),
    "an empty answer first": (("One?", ""), ("Two?", "no")),
    "two turns, joined by the mark": (("One?", "yes"), ("Two?", "no")),
}


@pytest.mark.parametrize("name", TRAPS)
def test_the_traps_of_counting_tokens_do_not_reach_us(name: str, llava: Llava) -> None:
    sample = chat(*TRAPS[name], pictures=False)
    encoded = encode(llava, sample)
    pieces = [(f"{SYSTEM} ", False)]
    for turn in sample.turns:
        pieces += [(f"USER: {turn.question} ASSISTANT:", False)]
        pieces += [(f" {turn.answer}</s>", True)] if turn.answer else [("</s>", False)]
    learned = "".join(text for text, own in pieces if own)
    assert llava.tokenizer.decode(encoded.labels[encoded.labels != IGNORED]) == learned
    ids = oracle(llava, [("".join(text for text, _ in pieces), False)])[0]
    assert encoded.ids.tolist() == ids


def test_the_original_way_falls_into_at_least_one_trap(llava: Llava) -> None:
    lost = {
        name: all(label == IGNORED for label in original_masks(llava, chat(*turns, pictures=False)))
        for name, turns in TRAPS.items()
    }
    assert lost["an answer that says ASSISTANT"]
    assert lost["a question that says ASSISTANT"]


@pytest.mark.parametrize("words", ["see <image> here", "ends </s> here"])
def test_marks_in_somebody_s_words_are_refused(words: str, llava: Llava) -> None:
    for sample in (chat((words, "yes")), chat(("Why?", words))):  # beside a picture
        with pytest.raises(UnusableSampleError, match="in the words of a"):
            encode(llava, sample)


def test_a_token_that_is_answer_in_part_is_refused(llava: Llava) -> None:
    joining = dataclasses.replace(llava, processor=copy.deepcopy(llava.processor))
    joining.tokenizer.add_tokens([": cat"])
    sample = chat(("What is it?", "cat"), pictures=False)
    (size,) = measure(joining, [sample], recipe="vicuna_v1", max_length=2048, on_long="cut")
    assert "': cat' is answer in part" in str(size)
    with pytest.raises(UnusableSampleError, match="': cat' is answer in part"):
        encode(joining, sample)


@torch.no_grad()
def test_questions_that_stand_apart_give_the_losses_of_separate_samples(llava: Llava) -> None:
    turns = (("What is it?", "a cat"), ("Its colour?", "red"), ("What is at the left?", "dog"))
    together = encode(llava, chat(*turns, apart=True))
    pixels = torch.randn(3, llava.image_size, llava.image_size, generator=torch.Generator().manual_seed(0))

    def losses(encoded: Encoded) -> dict[int, list[float]]:
        row = {"encoded": encoded, "pixels": [pixels], "sample": 0, "prefix": None}
        batch = collate([row], pad_id=llava.pad_token_id)
        labels, owner = batch.pop("labels"), batch.pop("owner")
        batch.pop("sample")
        logits = llava.model(**model_inputs(batch, llava)).logits[0, :-1]
        each = F.cross_entropy(logits, labels[0, 1:], reduction="none", ignore_index=IGNORED)
        return {int(o): each[(owner[0, 1:] == o)].tolist() for o in owner.unique() if o >= 0}

    found = losses(together)
    for number, turn in enumerate(turns):
        alone = losses(encode(llava, chat(turn)))[0]
        assert found[number] == pytest.approx(alone, abs=1e-4)  # float32 sums in another order
    chained = losses(encode(llava, chat(*turns)))
    assert chained[2] != pytest.approx(found[2], abs=1e-3)  # where turns follow each other, they do see each other
    assert len(together) < sum(len(encode(llava, chat(turn))) for turn in turns)


def test_writing_defaults_to_stage_2() -> None:
    assert PromptFormat().recipe == "vicuna_v1"
