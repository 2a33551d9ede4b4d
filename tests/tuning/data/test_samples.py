"""Sources, surveys, batches and orders: nothing is lost in silence, nothing needs to fit in memory."""

import base64
import json
import tracemalloc
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from models.inputs import prepare
from models.llava import Llava
from tasks.errors import UserError
from tasks.example import Example
from tasks.prompts import LETTER, SHORT
from tasks.scenes.questions import FAMILIES
from tests.tuning.conftest import LlavaRows, samples_of, turns
from tuning.data import samples as samples_module
from tuning.data import stored_lengths
from tuning.data.conversation import UnusableSampleError
from tuning.data.labels import IGNORED, encode, measure
from tuning.data.llava_json import LlavaFile
from tuning.data.prompt_format import PromptFormat
from tuning.data.samples import Samples, collate, survey
from tuning.data.scene_mix import SceneMix, SceneQuestions
from tuning.data.sources import Subset, TableFile, open_source
from tuning.data.step_order import StepOrder
from tuning.scoring.answers import collator

GOOD = [
    {"id": "one", "image": "coco/1.jpg", "conversations": turns("<image>\nWhat is it?", "a cat", "Where?", "left")},
    {"id": "text", "conversations": turns("Two and two?", "four")},
    {"id": "últim", "image": "2.jpg", "conversations": turns("Què és?\n<image>", "un gat ñandú 猫")},
]


def test_llava_s_layout_is_read_with_placeholders_at_the_beginning(llava_json: LlavaRows) -> None:
    source = LlavaFile(llava_json(GOOD))
    assert [source[i].id for i in range(len(source))] == ["one", "text", "últim"]
    assert [len(source[i].pictures) for i in range(3)] == [1, 0, 1]
    assert source[0].turns == (("What is it?", "a cat"), ("Where?", "left"))
    assert source[2].turns == (("Què és?", "un gat ñandú 猫"),)
    assert source[0].pictures[0].open().size == (30, 20)


def test_reading_needs_the_memory_of_one_sample_not_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    words = "word " * 400
    with path.open("w") as file:
        file.write("[")
        for i in range(3000):
            file.write(("," if i else "") + json.dumps({"id": i, "conversations": turns(words, words)}, indent=2))
        file.write("]")
    size = path.stat().st_size
    assert size > 10_000_000
    tracemalloc.start()
    source = LlavaFile(path)
    last = source[2999]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(source) == 3000
    assert last.id == "2999"
    assert peak < 0.6 * size  # a few chunks; the parsed file would take several times its size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "data must have at least one sample"),
        ("[1, 2]", "sample must be a JSON object, got int at sample 0"),
        ('[{"id": 1}, {"id": ', "JSON array of samples, got something else at sample 1"),
        ("hello", "JSON array of samples, got something else at sample 0"),
    ],
)
def test_a_broken_file_is_refused_with_the_place(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mix.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        LlavaFile(path)


def test_a_missing_file_or_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="existing file"):
        open_source(str(tmp_path / "no.json"))
    (tmp_path / "mix.json").write_text("[{}]")
    with pytest.raises(UserError, match="images must be a folder"):
        LlavaFile(tmp_path / "mix.json", tmp_path / "nowhere")


BAD = {
    "no answer": (turns("<image>\nWhat?"), "1.jpg", "no assistant turn"),
    "nothing": ([], "1.jpg", "no assistant turn"),
    "two questions": ([*turns("<image>\nA?"), *turns("B?", "b")], "1.jpg", "turns do not alternate"),
    "unknown role": ([{"from": "system", "value": "x"}, *turns("A?", "b")], "1.jpg", "turns do not alternate"),
    "no placeholder": (turns("What?", "a"), "1.jpg", "1 pictures, 0 placeholders"),
    "placeholders in two turns": (turns("<image>?", "a", "<image>?", "b"), "1.jpg", "1 pictures, 2 placeholders"),
    "placeholder of an empty picture": (turns("<image>\nWhat?", "a"), "", "0 pictures, 1 placeholders"),
    "missing picture": (turns("<image>\nWhat?", "a"), "missing.jpg", "its picture 'missing.jpg' is missing"),
    "no list": ("hello", "1.jpg", "conversations is not a list"),
    "empty answers": (turns("<image>\nWhat?", ""), "1.jpg", "nothing to learn: empty answers"),
}


def test_what_cannot_be_trained_on_is_counted_and_listed_with_its_reason(llava: Llava, llava_json: LlavaRows) -> None:
    rows: list[dict[str, object]] = [*GOOD]
    for name, (conversations, image, _) in BAD.items():
        rows.append({"id": name, "conversations": conversations, **({"image": image} if image is not None else {})})
    found = survey(llava, LlavaFile(llava_json(rows)), PromptFormat())
    assert {bad.id for bad in found.skipped} == set(BAD)
    for bad in found.skipped:
        assert BAD[bad.id][2] in bad.reason
    assert found.kept.tolist() == [0, 1, 2]
    assert f"{len(BAD)} left out" in found.describe()
    assert (found.labelled[found.kept] > 0).all()


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ('{"id": "x", "conversations": [{"from": "human", "value": "\\ud83d"}]}', "half a surrogate pair"),
        ('{"id": "x", "id": "y", "conversations": []}', "the key 'id' is given twice"),
        ('{"id": ' + "[" * 100 + "]" * 100 + "}", "nested more than 64 levels"),
    ],
)
def test_a_sample_that_is_no_plain_data_is_left_out(sample: str, reason: str, llava: Llava, tmp_path: Path) -> None:
    path = tmp_path / "mix.json"
    path.write_text(f"[{json.dumps(GOOD[1])}, {sample}]")
    found = survey(llava, LlavaFile(path), PromptFormat())
    assert found.kept.tolist() == [0]
    assert reason in found.skipped[0].reason


MEDIA = {
    "image_path": {"image_path": "1.jpg"},
    "Image": {"Image": "1.jpg"},
    "video": {"video": "clips/7.mp4"},
    "videos": {"videos": ["clips/7.mp4"]},
    "audio": {"audio": "7.wav"},
    "video beside a picture": {"image": "1.jpg", "video": "7.mp4"},
    "a key of any name": {"source_frame": "frames/0001.PNG"},
    "base64 under another key": {"photo64": "data:image/png;base64,AAAA"},
}


@pytest.mark.parametrize("name", MEDIA)
def test_media_under_a_key_that_is_not_read_are_refused(name: str, llava: Llava, llava_json: LlavaRows) -> None:
    question = "<image>\nWhat?" if "image" in MEDIA[name] else "What?"
    bad = {"id": name, "conversations": turns(question, "a"), **MEDIA[name]}
    found = survey(llava, LlavaFile(llava_json([*GOOD, bad])), PromptFormat())
    assert found.kept.tolist() == [0, 1, 2]
    assert "media that are not read" in found.skipped[0].reason


def test_other_keys_that_are_not_read_are_counted(llava: Llava, llava_json: LlavaRows) -> None:
    rows = [{**GOOD[0], "model": "gpt-4", "file_name": "1.jpg"}, {**GOOD[1], "model": "", "image_id": 3}]
    found = survey(llava, LlavaFile(llava_json(rows)), PromptFormat())
    assert found.unread == (("model", 2), ("file_name", 1), ("image_id", 1))
    assert "not read: model (2), file_name (1), image_id (1)" in found.describe()
    assert not survey(llava, LlavaFile(llava_json(GOOD)), PromptFormat()).unread


@pytest.mark.parametrize("empty", [None, "", [], float("nan"), {"bytes": None, "path": None}])
def test_no_picture_may_be_written_in_many_ways(empty: object, llava_json: LlavaRows) -> None:
    source = LlavaFile(llava_json([{"id": "w", "image": empty, "conversations": turns("Hello.", "Hi.")}]))
    assert source[0].pictures == ()


@pytest.mark.parametrize("empty", [None, {"bytes": None, "path": None}])
def test_null_columns_of_parquet_are_absent_keys(empty: object, llava: Llava, tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "1.png")
    data = (tmp_path / "1.png").read_bytes()
    image: object = {"bytes": data, "path": None} if isinstance(empty, dict) else "1.png"
    rows = [
        {"id": "p", "image": image, "conversations": turns("<image>\nWhat?", "a cat"), "model": None},
        {"id": None, "image": empty, "conversations": turns("What is <image>?", "A mark <image>."), "model": "m"},
        {"id": "t", "image": empty, "conversations": turns("Two?", "2"), "model": None},
    ]
    path = tmp_path / "mix.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    source = open_source(str(path))
    found = survey(llava, source, PromptFormat())
    assert not found.skipped
    assert found.pictured.tolist() == [True, False, False]
    assert found.unread == (("model", 1),)
    assert (source[1].id, source[1].turns) == ("1", (("What is <image>?", "A mark <image>."),))


TRAINED = {
    "in a later turn": (turns("Hello.", "Hi.", "<image>\nWhat?", "a"), "1.jpg", (0, 0, 1, 0)),
    "one in each turn": (turns("<image>\nA?", "a", "B?\n<image>", "b"), ["1.jpg", "2.jpg"], (1, 0, 1, 0)),
    "two marks, one picture": (turns("<image> and <image>?", "a"), "1.jpg", ()),
    "two marks, two pictures": (turns("<image><image>?", "a"), ["1.jpg", "2.jpg"], ()),
    "in an answer": (turns("Draw it.", "<image>\nHere."), "1.jpg", (0, 1)),
    "words alone": (turns("What is <image>?", "A mark."), None, ()),
    "alone in its turn": (turns("<image>", "a"), "1.jpg", ()),
}


@pytest.mark.parametrize("name", TRAINED)
def test_what_llava_trains_on_is_read_as_llava_reads_it(name: str, llava: Llava, llava_json: LlavaRows) -> None:
    conversations, image, placed = TRAINED[name]
    llava_json([{"image": "1.jpg"}, {"image": "2.jpg"}])  # draws the pictures
    row = {"id": name, "conversations": conversations, **({"image": image} if image else {})}
    source = LlavaFile(llava_json([row]))
    assert source[0].placed == placed
    assert len(source[0].pictures) == (0 if image is None else 2 if isinstance(image, list) else 1)
    found = survey(llava, source, PromptFormat())
    assert not found.skipped
    row_ids = encode(llava, source[0]).ids
    assert int((row_ids == llava.image_token_id).sum()) == len(source[0].pictures) * llava.n_image_tokens


@pytest.mark.parametrize("kind", ["bytes", "bytes and path", "path", "base64", "list of structs"])
@pytest.mark.parametrize("ending", ["parquet", "json", "jsonl"])
def test_pictures_may_be_embedded(kind: str, ending: str, tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "1.png")
    data = (tmp_path / "1.png").read_bytes()
    text = "data:image/png;base64," + base64.b64encode(data).decode()
    if ending != "parquet" and "bytes" in kind:
        pytest.skip("JSON has no bytes")
    if ending != "parquet" and kind == "list of structs":
        image: object = [{"path": "1.png"}]
    else:
        image = {
            "bytes": {"bytes": data, "path": None}, "bytes and path": {"bytes": data, "path": "x.png"}, "path": "1.png",
            "base64": text, "list of structs": [{"bytes": data, "path": None}],
        }[kind]  # fmt: skip
    rows = [{"id": str(i), "image": image, "conversations": turns("<image>\nWhat?", "a cat")} for i in range(3)]
    path = tmp_path / f"mix.{ending}"
    if ending == "parquet":
        pd.DataFrame(rows).to_parquet(path, row_group_size=2)
    else:
        path.write_text(json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows)))
    source = open_source(str(path))
    assert isinstance(source, LlavaFile)
    assert [sample.turns for sample in map(source.__getitem__, (2, 0))] == [(("What?", "a cat"),)] * 2
    assert source[2].pictures[0].open().getpixel((3, 3)) == (255, 0, 0)


def test_a_leading_answer_is_dropped_as_llava_does(llava_json: LlavaRows) -> None:
    greeting = [{"from": "gpt", "value": "Hello!"}, *turns("Two?", "2")]
    assert LlavaFile(llava_json([{"id": "g", "conversations": greeting}]))[0].turns == (("Two?", "2"),)


def test_long_samples_are_cut_and_counted_or_left_out(llava: Llava, llava_json: LlavaRows) -> None:
    source = LlavaFile(llava_json([{"id": "long", "conversations": turns("Say it.", "word " * 600)}]))
    cut = survey(llava, source, PromptFormat(max_length=200))
    assert (cut.cut, cut.lengths.tolist()) == (1, [200])
    left = survey(llava, source, PromptFormat(max_length=200, on_long="refuse"))
    assert left.skipped[0].reason.startswith("longer than the context")
    limit = llava.config.text_config.max_position_embeddings
    assert survey(llava, source, PromptFormat()).lengths.tolist() == [limit]  # never past the model's own context


def test_a_survey_that_is_stopped_goes_on_where_it_was(
    llava: Llava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LACCOLITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stored_lengths, "SMALLEST", 1)
    monkeypatch.setattr("tuning.data.samples._SURVEYED", 2)
    monkeypatch.setattr("tuning.data.samples._KEPT_EVERY", 0.0)
    rows = [{"id": str(i), "conversations": [{"from": "human", "value": f"say {i}"}, {"from": "gpt", "value": "yes"}]}
            for i in range(6)]  # fmt: skip
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows))
    measured: list[int] = []

    def counted(llava: Llava, conversations: list[Any], **options: Any) -> Any:
        measured.append(len(conversations))
        return measure(llava, conversations, **options)

    monkeypatch.setattr("tuning.data.samples.measure", counted)

    def stop(done: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey(llava, LlavaFile(path), PromptFormat(), on_progress=stop)
    assert measured == [2, 2]
    assert (survey(llava, LlavaFile(path), PromptFormat()).lengths > 0).all()
    assert measured == [2, 2, 2]


def test_lengths_are_kept_for_the_next_run_and_pictures_are_still_checked(
    llava: Llava, llava_json: LlavaRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LACCOLITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stored_lengths, "SMALLEST", 1)
    path = llava_json([*GOOD, {"id": "bad", "conversations": turns("a")}])
    first = survey(llava, LlavaFile(path), PromptFormat())
    (file,) = (tmp_path / "cache" / "lengths").iterdir()

    calls: list[int] = []
    monkeypatch.setattr(
        samples_module, "measure", lambda llava, some, **k: (calls.append(len(some)), measure(llava, some, **k))[1]
    )
    again = survey(llava, LlavaFile(path), PromptFormat())
    assert calls == []
    for name in ("lengths", "labelled", "pictured"):
        assert getattr(first, name).tolist() == getattr(again, name).tolist()
    assert (first.cut, first.skipped) == (again.cut, again.skipped)
    survey(llava, LlavaFile(path), PromptFormat(max_length=200))  # another format has lengths of its own
    assert calls == [3]
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    assert survey(llava, LlavaFile(path), PromptFormat()).lengths.tolist() == first.lengths.tolist()
    assert calls == [3, 3]
    (path.parent / "2.jpg").unlink()
    assert survey(llava, LlavaFile(path), PromptFormat()).kept.tolist() == [0, 1]
    file.write_bytes(b"")
    assert survey(llava, LlavaFile(path), PromptFormat()).kept.tolist() == [0, 1]


def test_a_table_of_questions_is_a_source(tmp_path: Path, llava: Llava) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "Two?", "answer": "2", "family": "sum"}) + "\n")
    source = open_source(str(tmp_path / "q.jsonl"))
    assert isinstance(source, TableFile)
    assert source[0].turns == (("Two?", "2"),)
    assert source[0].families == ("sum",)
    (tmp_path / "l.jsonl").write_text(json.dumps(GOOD[1]) + "\n\n" + json.dumps(GOOD[1]) + "\n")
    lines = open_source(str(tmp_path / "l.jsonl"))
    assert isinstance(lines, LlavaFile)
    assert len(lines) == 2


def test_the_scene_mix_asks_every_family_with_and_without_pictures() -> None:
    mix = SceneMix(60)
    found = [mix[i] for i in range(60)]
    families = [family for sample in found for family in sample.families]
    assert set(families) == {*FAMILIES, "caption"}
    assert 5 <= sum(not sample.pictures for sample in found) <= 30
    assert all(sample.apart for sample in found)
    assert mix[3] == SceneMix(60)[3]
    assert mix[3] != SceneMix(60, seed=1)[3]
    assert SceneMix(60).digest == mix.digest != SceneMix(60, format_prompts=False).digest


def test_format_prompts_can_be_left_out_and_stand_once_where_turns_follow() -> None:
    with_prompts, without = SceneMix(20), SceneMix(20, format_prompts=False)
    chained = SceneMix(20, apart=False, text_share=0.0)

    def prompts(mix: SceneMix) -> list[int]:
        return [sum(turn.question.endswith((SHORT, LETTER)) for turn in mix[i].turns) for i in range(20)]

    asked = [sum(family != "caption" for family in with_prompts[i].families) for i in range(20)]
    assert prompts(with_prompts) == asked
    assert set(prompts(without)) == {0}
    assert set(prompts(chained)) == {2}
    assert [t.answer for t in with_prompts[0].turns] == [t.answer for t in without[0].turns]


def test_a_chained_text_sample_says_its_caption_once() -> None:
    mix = SceneMix(10, apart=False, text_share=1.0)
    for i in range(10):
        caption = mix[i].turns[0].question.partition("\n")[0]
        assert not any(turn.question.startswith(caption) for turn in mix[i].turns[1:])


def test_scored_scenes_are_not_trained_on() -> None:
    trained = {SceneMix(50)[i].id for i in range(50)}
    for split in ("test", "unseen"):
        assert not trained & {SceneQuestions(50, split=split)[i].id for i in range(50)}
    assert SceneQuestions(2, text=True)[0].pictures == ()
    assert SceneQuestions(2)[0].families == FAMILIES


def test_stage_1_scenes_are_captions(llava: Llava) -> None:
    encoded = encode(llava, SceneMix(4, stage=1)[1], recipe="plain")
    said = llava.tokenizer.decode(encoded.labels[encoded.labels != IGNORED])
    assert said == SceneMix(4, stage=1)[1].turns[0].answer + "\n"


def test_an_epoch_holds_every_sample_once_and_groups_by_modality(llava: Llava) -> None:
    samples = samples_of(llava, SceneMix(40, questions=2))
    sampler = StepOrder(samples.lengths, samples.pictured, group=4, seed=0, grouping="length")
    order = list(sampler)
    assert sorted(order) == list(range(40))
    groups = [order[i : i + 4] for i in range(0, 40, 4)]
    mixed = [len(set(samples.pictured[group])) > 1 for group in groups]
    assert sum(mixed) <= 1
    assert any(not samples.pictured[group].any() for group in groups)
    spread = np.mean([np.ptp(samples.lengths[group]) for group in groups])
    shuffled = np.random.default_rng(0).permutation(40).reshape(-1, 4)
    assert spread < np.mean([np.ptp(samples.lengths[group]) for group in shuffled])


def test_even_groups_are_of_one_modality_all_and_count_what_they_hold(llava: Llava) -> None:
    samples = samples_of(llava, SceneMix(42, questions=2))
    pictured = int(samples.pictured.sum())
    assert pictured % 4
    assert (42 - pictured) % 4  # so that something is left over of both kinds
    for by_modality, grouping in product((True, False), ("step", "length")):
        sampler = StepOrder(
            samples.lengths, samples.pictured, group=4, seed=0, by_modality=by_modality, even=True, grouping=grouping
        )
        order = list(sampler)
        assert len(order) == len(sampler) == len(set(order)) < 42
        assert all(len(set(samples.pictured[order[i : i + 4]])) == 1 for i in range(0, len(order), 4))


def test_the_order_follows_from_seed_and_epoch(llava: Llava) -> None:
    samples = samples_of(llava, SceneMix(12, questions=2))

    def order(seed: int, epoch: int) -> list[int]:
        sampler = StepOrder(samples.lengths, samples.pictured, group=2, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    plain = StepOrder(samples.lengths, samples.pictured, group=2, seed=0, by_modality=False)
    assert sorted(plain) == list(range(12))


def test_grouping_within_a_step_is_llavas() -> None:
    """Steps hold random samples of one kind; each is shared out to its batches as LLaVA's trainer does."""
    rng = np.random.default_rng(3)
    lengths, pictured = rng.integers(5, 400, 150), rng.random(150) < 0.6
    order = np.array(list(StepOrder(lengths, pictured, group=12, batches=3, seed=1)))
    assert sorted(order) == list(range(150))
    full = [order[i : i + 12] for i in range(0, 150 - 150 % 12, 12)]
    kinds = [set(pictured[step]) for step in full]
    assert sum(len(kind) > 1 for kind in kinds) <= 2  # at the end, where the rest of both kinds meets
    steps = [step for step, kind in zip(full, kinds, strict=True) if len(kind) == 1]
    for step in steps:
        # LLaVA's rule, written out: the longest sample goes to the batch with the fewest tokens that is not full.
        wanted: list[list[int]] = [[], [], []]
        for index in sorted(step, key=lambda i: -lengths[i]):
            open_batches = [batch for batch in wanted if len(batch) < 4]
            min(open_batches, key=lambda batch: sum(lengths[i] for i in batch)).append(index)
        assert sorted(lengths[step].tolist()) == sorted(lengths[i] for batch in wanted for i in batch)
        sums = sorted(int(lengths[step[i : i + 4]].sum()) for i in (0, 4, 8))
        assert sums == sorted(int(sum(lengths[i] for i in batch)) for batch in wanted)
    together = [np.ptp(lengths[step]) for step in steps]
    by_length = np.array(list(StepOrder(lengths, pictured, group=12, batches=3, seed=1, grouping="length")))
    assert np.mean(together) > 2 * np.mean([np.ptp(lengths[by_length[i : i + 12]]) for i in range(0, 144, 12)][:-2])


@torch.no_grad()
def test_a_padded_batch_gives_the_logits_of_single_samples(llava: Llava, mix: SceneMix) -> None:
    samples = samples_of(llava, mix)
    rows = [samples[i] for i in range(4)]
    batch = collate(rows, pad_id=llava.pad_token_id)
    assert batch["attention_mask"].ndim == 4
    assert batch["input_ids"].shape[1] == max(samples.lengths[:4])

    def logits(given: dict[str, torch.Tensor]) -> torch.Tensor:
        kept = {k: v for k, v in given.items() if k not in ("labels", "owner", "sample")}
        return llava.model(**kept, use_cache=False).logits

    together = logits(batch)
    for index, row in enumerate(rows):
        alone = logits(collate([row], pad_id=llava.pad_token_id))[0]
        torch.testing.assert_close(together[index, : len(alone)], alone, atol=1e-4, rtol=1e-4)


def test_a_batch_of_words_has_no_pixels_and_a_plain_mask(llava: Llava) -> None:
    samples = samples_of(llava, SceneMix(2, questions=1, text_share=1.0))
    batch = collator(llava)([samples[0], samples[1]])
    assert "pixel_values" not in batch
    assert batch["attention_mask"].ndim == 2
    alone = [encode(llava, samples.conversation(i)).labels for i in (0, 1)]
    assert (batch["labels"] != IGNORED).sum() == sum((labels != IGNORED).sum() for labels in alone)


def test_a_subset_names_itself(mix: SceneMix) -> None:
    few = Subset(mix, [3, 1])
    assert len(few) == 2
    assert few[0] == mix[3]
    assert few.digest != mix.digest


def test_samples_are_read_on_demand(llava: Llava, llava_json: LlavaRows) -> None:
    source = LlavaFile(llava_json(GOOD))
    samples = samples_of(llava, source)
    assert isinstance(samples, Samples)
    assert samples[0]["pixels"][0].shape == (3, llava.image_size, llava.image_size)
    assert samples[1]["pixels"] == []
    with pytest.raises(UnusableSampleError):
        LlavaFile(llava_json([{"id": "x", "conversations": turns("a")}]))[0]


def test_a_picture_too_elongated_to_prepare_has_the_same_error_in_training_as_in_sweeps(
    llava: Llava, llava_json: LlavaRows
) -> None:
    path = llava_json(GOOD[:1])
    Image.new("RGB", (20_000, 1)).save(path.parent / "coco" / "1.jpg")
    source = LlavaFile(path)
    picture = source[0].pictures[0]
    with pytest.raises(UserError, match="picture must take at most .* got 20000 x 1 in .*1.jpg.*Shrink it") as training:
        samples_of(llava, source)[0]
    with pytest.raises(UserError) as sweep:
        prepare(llava, [Example(id="a", pictures=(picture,), question="What?", answer="", group="a")])
    assert str(training.value) == str(sweep.value)
