"""``patch-sweep --metric cider``: captions under interventions against generation with context managers."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from interventions.cli import main
from interventions.config import InterventionOptions, PairOptions, PatchConfig
from interventions.in_memory.context_managers import ablated, knocked_out, patched, skipped
from interventions.pairs import load_pairs
from interventions.plan.options import Corruption, SkipOptions
from interventions.sweep import run_patch_sweep
from models.inputs import prepare
from models.llava import Llava
from models.loading.load import load
from records.options import ModelOptions
from records.run import FinishedRun
from tasks.rules.cider import Cider
from tests.tasks.benchmarks.bundle import png, write

NEW = 4


@pytest.fixture(scope="module")
def llava() -> Llava:
    return load("random:tiny", seed=0)


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory, llava: Llava) -> Path:
    """COCO-layout captions of six pictures; half of a model's own words, so that scores are not all 0."""
    folder = tmp_path_factory.mktemp("captions")
    pictures = {f"images/{n}.jpg": png((40 * n, 255 - 40 * n, 90)) for n in range(6)}
    write(folder, pictures)
    texts = [llava.generate(str(folder / f"images/{n}.jpg"), "Describe.", max_new_tokens=12) for n in range(6)]
    annotations = [
        {"image_id": n, "caption": f"{start}{text} picture {n}"} for n, text in enumerate(texts) for start in ("", "a ")
    ]  # fmt: skip
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(6)]
    return write(folder, {"captions_val.json": {"images": images, "annotations": annotations}})


def sweep(folder: Path, out: Path, llava: Llava, batch_size: int = 2, **options: Any) -> pd.DataFrame:
    corruption = options.pop("corruption", Corruption())
    config = PatchConfig(
        InterventionOptions(metrics=("cider",), **options), ModelOptions("random:tiny"),
        PairOptions(f"benchmark:caption={folder}"), corruption, batch_size=batch_size, new_tokens=NEW, out=out,
    )  # fmt: skip
    finished = run_patch_sweep(config, llava=llava)
    assert isinstance(finished, FinishedRun)
    return pd.read_parquet(out / "values.parquet")


def test_captions_under_cells_are_those_of_the_context_managers(captions: Path, llava: Llava, tmp_path: Path) -> None:
    pairs = load_pairs(PairOptions(f"benchmark:caption={captions}"), seed=0).pairs
    assert len(pairs) == 3 and all(len(pair.clean.captions) == 2 for pair in pairs)
    cider = Cider([pair.clean.captions for pair in pairs])
    clean, corrupt = (prepare(llava, [getattr(pair, side) for pair in pairs]) for side in ("clean", "corrupt"))

    def scores(inputs: Any) -> list[float]:
        texts = llava.generate(inputs, max_new_tokens=NEW)
        return [cider.score(text, number) for number, text in enumerate(texts)]

    plain = scores(clean)
    assert max(plain) > 0
    seen = set()
    cases: list[tuple[dict[str, Any], Any, Any]] = [
        ({"op": "patch", "sites": ("resid_post",), "layers": "1", "tokens": ("image",)},
         patched(llava, clean, "resid_post", layers=1, tokens="image"), corrupt),
        ({"op": "knockout", "layers": "0-3", "window": "together", "tokens": ("image->last",)},
         knocked_out(llava, source="image", target="last", layers="0-3"), clean),
        ({"op": "ablate", "sites": ("mlp_out",), "layers": "2", "tokens": ("all",)},
         ablated(llava, "mlp_out", layers=2, tokens="all", reference=[pair.clean for pair in pairs]), clean),
        ({"op": "skip", "layers": "1-3", "window": "together", "tokens": ("image",), "skip": SkipOptions(hidden=True)},
         skipped(llava, layers="1-3", tokens="image", visible=False), clean),
    ]  # fmt: skip
    for number, (options, context, inputs) in enumerate(cases):
        found = sweep(captions, tmp_path / str(number), llava, **options)
        with context:
            expected = scores(inputs)
        assert found["value"].tolist() == pytest.approx(expected, rel=1e-6), options["op"]
        assert found["clean"].tolist() == pytest.approx(plain, rel=1e-6)
        seen.add(tuple(expected))
    assert len(seen | {tuple(plain)}) > 2, "interventions change captions"
    results = pd.read_csv(tmp_path / "0" / "results.csv")
    assert (results["metric"] == "cider").all() and results["n"].iloc[0] == 3


def test_batches_do_not_change_captions_and_a_blank_picture_corrupts(
    captions: Path, llava: Llava, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"op": "patch", "layers": "0", "tokens": ("image",), "corruption": Corruption("blank")}
    one, three = (sweep(captions, tmp_path / str(n), llava, batch_size=n, **options) for n in (1, 3))
    pd.testing.assert_frame_equal(one, three)
    # Patching all image tokens before block 0 of the blank run is the clean run.
    assert one["value"].tolist() == pytest.approx(one["clean"].tolist())


def test_a_file_of_pairs_names_captions(captions: Path, llava: Llava, tmp_path: Path) -> None:
    row = {"clean": "0.jpg", "corrupt": "1.jpg", "question": "Describe.", "answer": "a", "foil": "b"}
    write(tmp_path, {"p.jsonl": [{**row, "id": i, "captions": [f"a cat {i}"]} for i in "xy"], "q.jsonl": [row, row]})
    options = PairOptions(str(tmp_path / "p.jsonl"), images=captions / "images")
    pairs = load_pairs(options, seed=0)
    assert [pair.clean.captions for pair in pairs.pairs] == [("a cat x",), ("a cat y",)]
    write(tmp_path, {"p.jsonl": [{**row, "id": i, "captions": [f"a dog {i}"]} for i in "xy"]})
    assert load_pairs(options, seed=0).digest != pairs.digest


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "data must have captions for metric cider, got scenes"),
        (["--data", "FILE"], "data must have captions for metric cider, got none for '0'"),
        (["--data", "CAPTIONS", "--limit", "1"], "metric cider must have at least two pairs, got one"),
        (["--data", "CAPTIONS", "--metric", "kl"], "metric cider must be the only metric, got cider, kl"),
        (["--data", "CAPTIONS", "--op", "attribute"], "must go with op patch, ablate, knockout, skip or steer"),
        (["--data", "CAPTIONS", "--corruption", "noise"], "corruption must be pair or blank for metric cider"),
        (["--data", "CAPTIONS", "--new-tokens", "0"], "new-tokens must be >= 1, got 0"),
        (["--metric", "kl", "--new-tokens", "3"], "new-tokens must go with metric cider"),
        (["--data", "BAD"], "captions must be a list of texts, got 'text'"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    words: list[str], said: str, captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"clean": "0.jpg", "corrupt": "1.jpg", "question": "Describe.", "answer": "a", "foil": "b"}
    write(tmp_path, {"f.jsonl": [row, row], "bad.jsonl": [{**row, "captions": "text"}]})
    named = {
        "CAPTIONS": f"benchmark:caption={captions}", "FILE": str(tmp_path / "f.jsonl"),
        "BAD": str(tmp_path / "bad.jsonl"),
    }  # fmt: skip
    metric = [] if words[:2] == ["--metric", "kl"] else ["--metric", "cider"]
    given = [*metric, *(named.get(word, word) for word in words)]
    images = ["--images", str(captions / "images")] if given[-1].endswith(".jsonl") else []
    with pytest.raises(SystemExit) as end:
        main([*given, *images, "--model", "random:tiny", "--out", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert end.value.code == 2 and said in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
