"""Plans compared on files: LLaVA's own layout to train on, files of questions to score, each a condition."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image

from figures.plans.cost import draw_cost_retention
from figures.plans.scores import draw_accuracy
from models.loading.load import load
from records.options import ModelOptions
from tasks.errors import UserError
from tests.tuning.compare.test_compare import compare
from tests.tuning.conftest import LlavaRows, turns
from tuning.compare.compare import run_compare
from tuning.compare.config import CompareConfig, CompareData
from tuning.compare.data import open_data
from tuning.compare.report_table import render_table
from tuning.compare.table import read_answers
from tuning.config import Optimisation, RunOptions
from tuning.cost.timing import measure_plans
from tuning.data.scene_mix import SceneMix

QUESTIONS = [
    {"question": "Which colour?", "answer": "red", "image": "a.png", "family": "colour"},
    {"question": "Is it red?", "answer": "yes", "image": "a.png", "family": "exists"},
    {"question": "Which colour?", "answer": "red", "image": "b.png", "family": "colour"},
    {"question": "Two and two?", "answer": "4"},
]


def asked(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def config(base: Path, llava_json: LlavaRows, tmp_path: Path) -> CompareConfig:
    rows = [
        {"id": "a", "image": "a.png", "conversations": turns("<image>\nWhich colour?", "red", "Sure?", "yes")},
        {"id": "t", "conversations": turns("Two and two?", "4")},
        {"id": "b", "image": "b.png", "conversations": turns("<image>\nIs it red?", "yes")},
    ]
    mix = llava_json(rows)
    Image.new("RGB", (20, 30), (30, 30, 200)).save(tmp_path / "b.png")  # equal pictures would be one
    return CompareConfig(
        model=ModelOptions(name=str(base)),
        plans=("start", "full", "middle band"),
        data=CompareData(str(mix), eval_specs=(str(asked(tmp_path / "pope.jsonl", QUESTIONS)),)),
        optimisation=Optimisation(steps=2, batch_size=1, grad_accum=2, lr=1e-3, projector_lr=1e-3),
        run=RunOptions(save_every=0, gradient_checkpointing=True, workers=1),
        timing_rounds=0,
        out=tmp_path / "out",
    )


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, which take longer than the rest."""
    monkeypatch.setattr("figures.drawn_figures", lambda folder, **_: ())


def test_a_file_is_trained_on_and_another_is_a_condition(
    config: CompareConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[dict[str, Any]] = []

    def measure(llava: object, plans: object, inputs: dict[str, torch.Tensor], **options: Any) -> object:
        timed.append({**options, "pictures": len(inputs["pixel_values"])})
        return measure_plans(llava, plans, inputs, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("tuning.compare.compare.measure_plans", measure)
    notes: list[str] = []
    config = replace(config, timing_rounds=1)
    done = compare(config, on_note=notes.append)
    assert any(note.startswith("training on 3 samples (1 without a picture)") for note in notes)
    assert [(one["checkpointing"], one["pictures"]) for one in timed] == [(True, 1)]
    rows = done[done["plan"] == "full"]
    scored = rows[rows["condition"] == "pope"].set_index("family")
    assert scored.index.tolist() == ["colour", "exists", "all"]  # the one without a family is in the last alone
    assert scored["n"].tolist() == [2, 1, 3]  # pictures, and the sample that has none
    assert scored["chance"].isna().all()  # of scenes it is known
    assert set(rows["condition"]) == {"pope", "passage"}
    answers = read_answers(config.out)
    assert answers.groupby("plan")["id"].count().tolist() == [4, 4, 4]
    assert answers["id"].nunique() == 3
    first = json.loads((config.out / "runs" / "full-seed0" / "log.jsonl").read_text().splitlines()[0])
    assert np.isfinite(first["loss"])
    assert render_table(done).columns[-3].header == "retention (pope)"
    manifest = json.loads((config.out / "manifest.json").read_text())
    assert manifest["data"].keys() == {"train", "pope"}
    drawn = {path.stem for path in (config.out / "figures").glob("*.png")}
    assert drawn >= {"accuracy_by_family", "retention", "plans"}


@pytest.mark.usefixtures("undrawn")
def test_what_changed_is_another_comparison(config: CompareConfig, base: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(base, model)
    config = replace(config, model=ModelOptions(name=str(model)), plans=("full",))
    run_compare(config)
    path = Path(config.data.eval_specs[0])
    asked(path, QUESTIONS[:2])
    with pytest.raises(UserError, match=r"out must contain the same run .* differs: data.pope was"):
        run_compare(config)
    asked(path, QUESTIONS)
    changes: dict[str, dict[str, Any]] = {
        "data": {"spec": "scenes"}, "limit": {"limit": 2}, "eval_limit": {"eval_limit": 2},
        "eval_data": {"eval_specs": ("scenes",)},
    }  # fmt: skip
    for name, change in changes.items():
        with pytest.raises(UserError, match=rf"differs: settings.{name} was"):
            run_compare(replace(config, data=replace(config.data, **change)))
    weights = next(model.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"differs: model.weight_hash was"):
        run_compare(config)


@pytest.mark.usefixtures("undrawn")
def test_plans_are_never_scored_on_other_samples(config: CompareConfig) -> None:
    """Pictures of LLaVA's layout may come and go while the file stays."""
    rows = [{"id": name, "image": f"{name}.png", "conversations": turns("<image>\nRed?", "yes")} for name in "ab"]
    path = Path(config.data.spec).with_name("asked.json")
    path.write_text(json.dumps(rows))
    away = path.with_name("b.png").rename(path.with_name("away.png"))
    config = replace(config, data=CompareData(str(path), eval_specs=(str(path),), skip_bad=True))
    notes: list[str] = []
    run_compare(replace(config, plans=("full",)), on_note=notes.append)
    assert [note for note in notes if "left out" in note and note.startswith("1 samples")] == [
        f"1 samples left out, see {config.out / f'skipped-{name}.csv'}" for name in ("train", "asked")
    ]
    away.rename(path.with_name("b.png"))
    with pytest.raises(UserError, match="got a change in the samples that can be used for train, asked"):
        run_compare(config)
    path.with_name("b.png").rename(away)
    assert set(compare(config)["plan"]) == {"start", "full", "middle band"}


def test_limits_are_of_files_and_scenes_stay_what_they_were(config: CompareConfig) -> None:
    specs = (*config.data.eval_specs, "scenes")
    opened = open_data(replace(config.data, limit=2, eval_specs=specs, eval_limit=3, score_scenes=5))
    assert len(opened.train) == 2
    lengths = [(name, len(source)) for name, source in opened.eval.items()]
    assert lengths == [("seen", 5), ("unseen", 5), ("text", 5), ("pope", 3)]
    assert opened.digests.keys() == {"train", "pope"}
    scenes = CompareData(scenes=7)
    assert open_data(scenes).digests == {}
    assert isinstance(open_data(scenes).train, SceneMix)
    elsewhere = replace(config.data, spec=f"/elsewhere/{Path(config.data.spec).name}")
    assert replace(config, data=elsewhere).settings == config.settings


@pytest.mark.parametrize("names", [(), ("seen",), ("passage",), ("train",), ("a", "a"), ("scenes", "text")])
def test_conditions_must_have_names_of_their_own(names: tuple[str, ...], config: CompareConfig, tmp_path: Path) -> None:
    files = [name if name == "scenes" else str(asked(tmp_path / f"{name}.jsonl", QUESTIONS[-1:])) for name in names]
    with pytest.raises(UserError, match="eval-data must be `scenes` and files with different names"):
        run_compare(replace(config, data=replace(config.data, eval_specs=tuple(files))))
    assert not config.out.exists()


@pytest.mark.usefixtures("undrawn")
def test_what_cannot_be_scored_is_refused_or_listed_before_anything_trains(
    config: CompareConfig, tmp_path: Path
) -> None:
    Image.new("RGB", (20, 30), (30, 200, 30)).save(tmp_path / "c.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "c.png").read_bytes()[:30])
    bad = [{"question": "Say it.", "answer": "two " * 600}]
    bad += [{"question": "Red?", "answer": "no", "image": name} for name in ("gone.png", "c.png")]
    asked(Path(config.data.eval_specs[0]), [*QUESTIONS, *bad])
    with pytest.raises(UserError, match=r"got 3 that cannot .* in 'pope.*--skip-bad"):
        run_compare(config)
    assert not list(config.out.glob("runs/*"))
    done = compare(replace(config, plans=("full",), data=replace(config.data, skip_bad=True)))  # the same folder
    listed = pd.read_csv(config.out / "skipped-pope.csv")
    assert sorted(listed["sample"]) == [4, 5, 6]
    assert set(done.loc[done["condition"] == "pope", "n"]) == {1, 2, 3}


def test_nothing_that_can_be_scored_is_refused_whatever_may_be_skipped(config: CompareConfig, tmp_path: Path) -> None:
    (tmp_path / "c.png").write_bytes(b"no picture")
    asked(Path(config.data.eval_specs[0]), [{"question": "Red?", "answer": "no", "image": "c.png"}])
    with pytest.raises(UserError, match=r"got 1 that cannot .* in 'pope"):
        run_compare(replace(config, data=replace(config.data, skip_bad=True)))


def test_a_context_that_scenes_do_not_fit_in_is_one_sentence(config: CompareConfig, tmp_path: Path) -> None:
    llava = load(config.model.name, validate=False)
    llava.config.text_config.max_position_embeddings = 64
    llava.model.save_pretrained(tmp_path / "short")
    llava.processor.save_pretrained(tmp_path / "short")
    model, data = ModelOptions(name=str(tmp_path / "short")), replace(config.data, eval_specs=("scenes",))
    short = replace(config, model=model, data=data)
    with pytest.raises(UserError, match=r"scenes-"):
        run_compare(short)


@pytest.mark.usefixtures("undrawn")
def test_a_broken_picture_is_one_sentence_and_nothing_that_finished_is_lost(config: CompareConfig) -> None:
    data = replace(config.data, eval_specs=("scenes",), score_scenes=1)
    config = replace(config, plans=("start", "full"), data=data, run=RunOptions(save_every=0))
    picture = Path(data.spec).with_name("a.png")
    whole = picture.read_bytes()
    picture.write_bytes(whole[:20])
    with pytest.raises(UserError, match=r"a\.png"):
        run_compare(config)
    assert [path.parent.name for path in config.out.glob("runs/*/answers.parquet")] == ["start-seed0"]
    picture.write_bytes(whole)
    table = compare(config)
    assert list(dict.fromkeys(table["plan"])) == ["start", "full"]


def test_a_step_that_no_memory_holds_is_one_sentence(config: CompareConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("tuning.compare.compare.measure_plans", full)
    with pytest.raises(UserError, match=r"device must have room for a step of 1 samples.*Lower --batch-size"):
        run_compare(replace(config, timing_rounds=1))


def test_files_that_cannot_be_read_are_refused_before_a_folder_is_made(config: CompareConfig) -> None:
    with pytest.raises(UserError, match="nowhere.json"):
        run_compare(replace(config, data=replace(config.data, spec="nowhere.json")))
    with pytest.raises(UserError, match="limit must be >= 1, got 0"):
        run_compare(replace(config, data=replace(config.data, limit=0)))
    assert not config.out.exists()


def test_figures_show_the_conditions_and_families_that_there_are() -> None:
    rows = [
        {"plan": plan, "condition": condition, "family": family, "metric": "accuracy", "score": 0.5, "score_lower": 0.4,
         "score_upper": 0.6, "chance": np.nan, "retention": 0.9, "lower": 0.8, "upper": 1.0, "n": 7, "seeds": 1,
         "flops_ratio": 0.8, "step_time_ratio": 0.9}
        for plan in ("full", "middle band")
        for condition, families in {"pope": ("adversarial", "all"), "vqa": ("all",)}.items()
        for family in families
    ]  # fmt: skip
    panels = draw_accuracy(pd.DataFrame(rows))
    labels = [[label.get_text() for label in panel.get_xticklabels()] for panel in panels]
    assert labels == [["adversarial", "all"], ["all"]]
    assert [panel.get_title(loc="left") for panel in panels] == ["pope  (n = 7)", "vqa  (n = 7)"]
    assert draw_cost_retention(pd.DataFrame(rows))[0].get_ylabel() == "retention (pope)"
    plt.close("all")
