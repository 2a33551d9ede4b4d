"""Plans compared on files: LLaVA's own layout to train on, files of questions to score, each a condition."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from figures.accuracy_by_family import draw_accuracy
from figures.cost_retention import draw_cost_retention
from records.errors import BadInput
from tests.tuning.conftest import LlavaRows, turns
from tuning.compare import run_compare
from tuning.compare_data import open_data
from tuning.compare_table import read_answers
from tuning.config import CompareConfig, Optimisation, Running
from tuning.report_table import render_table
from tuning.sources import SceneMix

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
    data = llava_json(rows)
    Image.new("RGB", (20, 30), (30, 30, 200)).save(tmp_path / "b.png")  # equal pictures would be one
    return CompareConfig(
        model=str(base),
        plans=("start", "full", "middle band"),
        data=str(data),
        eval_data=(str(asked(tmp_path / "pope.jsonl", QUESTIONS)),),
        optimisation=Optimisation(steps=2, batch_size=1, grad_accum=2, lr=1e-3, projector_lr=1e-3),
        running=Running(save_every=0, gradient_checkpointing=True),
        timing_rounds=1,
        out=tmp_path / "out",
    )


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures, which take longer than the rest."""
    monkeypatch.setattr("tuning.compare._draw", lambda folder, table: ())


def test_a_file_is_trained_on_and_another_is_a_condition(config: CompareConfig) -> None:
    notes: list[str] = []
    done = run_compare(config, on_note=notes.append)
    assert any(note.startswith("training on 3 samples (1 without a picture)") for note in notes)
    rows = done.table[done.table["plan"] == "full"]
    scored = rows[rows["condition"] == "pope"].set_index("family")
    assert scored.index.tolist() == ["colour", "exists", "all"]  # the one without a family is in the last alone
    assert scored["n"].tolist() == [2, 1, 3]  # pictures, and the sample that has none
    assert scored["chance"].isna().all()  # of scenes it is known
    assert set(rows["condition"]) == {"pope", "passage"}
    assert (done.table["flops_ratio"].dropna() <= 1).all()
    answers = read_answers(config.out)
    assert answers.groupby("plan")["id"].count().tolist() == [4, 4, 4]
    assert answers["id"].nunique() == 3
    first = json.loads((config.out / "runs" / "full-seed0" / "log.jsonl").read_text().splitlines()[0])
    assert np.isfinite(first["loss"])
    assert render_table(done.table).columns[-3].header == "retention (pope)"
    assert json.loads((config.out / "manifest.json").read_text())["data"].keys() == {"train", "pope"}
    drawn = {path.stem for path in (config.out / "figures").glob("*.png")}
    assert drawn >= {"accuracy_by_family", "retention", "plans"}


@pytest.mark.usefixtures("undrawn")
def test_a_file_that_changed_is_another_comparison(config: CompareConfig) -> None:
    run_compare(replace(config, plans=("full",), timing_rounds=0))
    path = Path(config.eval_data[0])
    asked(path, QUESTIONS[:2])
    with pytest.raises(BadInput, match=r"out must hold the same comparison .* differs: data.pope was"):
        run_compare(config)
    asked(path, QUESTIONS)
    for change in ({"data": "scenes"}, {"limit": 2}, {"eval_limit": 2}, {"eval_data": ("scenes",)}):
        with pytest.raises(BadInput, match=rf"differs: settings.{next(iter(change))} was"):
            run_compare(replace(config, **change))  # type: ignore[arg-type]


def test_limits_are_of_files_and_scenes_stay_what_they_were(config: CompareConfig) -> None:
    opened = open_data(replace(config, limit=2, eval_data=(*config.eval_data, "scenes"), eval_limit=3, score_scenes=5))
    assert len(opened.mix) == 2
    assert {name: len(source) for name, source in opened.questions.items()} == {
        "pope": 3, "seen": 5, "unseen": 5, "text": 5,
    }  # fmt: skip
    assert opened.digests.keys() == {"train", "pope"}
    scenes = CompareConfig(scenes=7)
    assert open_data(scenes).digests == {}
    assert isinstance(open_data(scenes).mix, SceneMix)
    assert not {"data", "images", "limit", "eval_data", "eval_limit", "skip_bad"} & scenes.settings.keys()


@pytest.mark.parametrize("names", [(), ("seen",), ("passage",), ("train",), ("a", "a"), ("scenes", "text")])
def test_conditions_must_have_names_of_their_own(names: tuple[str, ...], config: CompareConfig, tmp_path: Path) -> None:
    files = [name if name == "scenes" else str(asked(tmp_path / f"{name}.jsonl", QUESTIONS[-1:])) for name in names]
    with pytest.raises(BadInput, match="eval-data must be `scenes` and files with names of their own"):
        run_compare(replace(config, eval_data=tuple(files)))
    assert not config.out.exists()


@pytest.mark.usefixtures("undrawn")
def test_samples_that_cannot_be_used_are_refused_or_listed(config: CompareConfig) -> None:
    path = Path(config.eval_data[0])
    asked(path, [*QUESTIONS, {"question": "Say it.", "answer": "two " * 600}])
    with pytest.raises(BadInput, match=r"every sample must be one that can be used, got 1 that cannot .*--skip-bad"):
        run_compare(replace(config, timing_rounds=0))
    done = run_compare(replace(config, plans=("full",), timing_rounds=0, skip_bad=True))
    assert len(pd.read_csv(config.out / "skipped-pope.csv")) == 1
    assert set(done.table.loc[done.table["condition"] == "pope", "n"]) == {1, 2, 3}


@pytest.mark.usefixtures("undrawn")
def test_a_broken_picture_is_one_sentence_and_nothing_that_finished_is_lost(config: CompareConfig) -> None:
    # the digest of a table is of its pictures, too; that of a file in LLaVA's layout is not
    config = replace(config, plans=("start", "full"), eval_data=("scenes",), score_scenes=1, timing_rounds=0)
    picture = Path(config.data).parent / "a.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:20])
    with pytest.raises(BadInput, match=r"a\.png"):
        run_compare(config)
    assert [path.parent.name for path in config.out.glob("runs/*/answers.parquet")] == ["start-seed0"]
    picture.write_bytes(whole)
    table = run_compare(config).table
    assert list(dict.fromkeys(table["plan"])) == ["start", "full"]


def test_files_that_cannot_be_read_are_refused_before_a_folder_is_made(config: CompareConfig) -> None:
    with pytest.raises(BadInput, match="nowhere.json"):
        run_compare(replace(config, data="nowhere.json"))
    with pytest.raises(BadInput, match="limit must be >= 1, got 0"):
        run_compare(replace(config, limit=0))
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
