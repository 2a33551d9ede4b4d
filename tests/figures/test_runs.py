"""Which figures a run directory gets, and the command, run as a process."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from figures import example_table, runs
from figures.__main__ import main
from figures.read_run import RunError, kind_of_run
from figures.runs import draw_patch_run, draw_run, drawn_figures, figures_of
from figures.style import FigurePaths, Panels, figure_of, file_name, save_figure
from tests.figures.tables import compare_table, evaluations_table, map_table, patch_table, probe_table

ROOT = Path(__file__).parents[2]


def run_folder(folder: Path, kind: str | None, table: pd.DataFrame | None, name: str = "results.parquet") -> Path:
    folder.mkdir()
    if kind is not None:
        (folder / "manifest.json").write_text(json.dumps({"kind": kind, "format": 1}))
    if table is not None and name.endswith("parquet"):
        table.to_parquet(folder / name, index=False)
    elif table is not None:
        table.to_csv(folder / name, index=False)
    return folder


def add_maps(folder: Path) -> None:
    map_table().to_parquet(folder / "maps.parquet", index=False)
    (folder / "maps").mkdir()
    entries = []
    for k, example in enumerate(("a", "b")):
        Image.new("RGB", (30, 30), (9, 9, 9)).save(folder / "maps" / f"{k}.png")
        entries.append(
            {
                "k": k, "example": example, "question": "q", "answer": "a",
                "labels": {"kind": "cat", "colour": f"red {k}"}, "boxes": {"o": [0.1, 0.1, 0.5, 0.5]},
                "focus": "o" if k else None, "classes": {"kind": ["cat", "dog"], "colour": ["red 0", "red 1"]},
            }
        )  # fmt: skip
    (folder / "maps.json").write_text(json.dumps(entries))


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        (patch_table(), ["token_map"]),
        (patch_table(op="knockout", tokens=("image->last",)), ["token_map", "curves"]),
        (patch_table(op="skip", tokens=("image",)), ["token_map", "curves"]),
        (patch_table(op="transplant", tokens=("",)), ["curves"]),
        (patch_table(tokens=("last",), heads=("0", "1"), names=("z",)), ["head_map"]),
        (patch_table(tokens=("patch(0,0)", "patch(0,1)")), ["patch_map"]),
        (patch_table(tokens=("patch(0,0)", "patch(0,1)", "image")), ["token_map", "patch_map"]),
    ],
)
def test_figures_of_a_patch_sweep_are_those_that_fit_the_table(results: pd.DataFrame, expected: list[str]) -> None:
    assert [drawing.name for drawing in draw_patch_run(results)] == expected
    with pytest.raises(ValueError, match="at least one row"):
        list(draw_patch_run(results.iloc[:0]))


def test_a_probe_sweep_gives_scores_by_activation_and_a_map_for_each_target(tmp_path: Path) -> None:
    results = probe_table()
    blocks = results[results["layer"].notna()]
    both = pd.concat([results, blocks[blocks["layer"] < 2].assign(name="z")])
    folder = run_folder(tmp_path / "run", "laccolith probe-sweep", both)
    assert [drawing.name for drawing in figures_of(folder)] == ["score_by_layer", "score_by_layer_z"]
    add_maps(folder)
    drawings = {drawing.name: drawing.axes for drawing in figures_of(folder, example=1)}
    assert list(drawings)[2:] == ["probe_map_kind", "probe_map_colour"]
    panel = next(iter(drawings["probe_map_colour"]))  # type: ignore[arg-type]
    assert figure_of(panel).get_suptitle() == "colour = red 1: what a probe reads at each patch"
    assert len(panel.images) == 2 and len(panel.patches) == 2
    maps = map_table()
    first = maps[(maps["target"] == "colour") & (maps["example"] == "b")].head(6)
    np.testing.assert_allclose(np.asarray(panel.images[1].get_array()).ravel(), first["p_true"])
    with pytest.raises(RunError, match=r"example must be in \[0, 2\)"):
        list(figures_of(folder, example=2))


def test_a_comparison_gives_four_figures_and_three_where_nothing_was_timed(tmp_path: Path) -> None:
    kind = "laccolith layerwise-finetune compare"
    names = ["accuracy_by_family", "retention", "plans", "cost_against_retention"]
    timed = run_folder(tmp_path / "timed", kind, compare_table(), "compare.csv")
    assert [drawing.name for drawing in figures_of(timed)] == names
    untimed = compare_table().assign(flops_ratio=np.nan, step_time_ratio=np.nan)
    assert [d.name for d in figures_of(run_folder(tmp_path / "not", kind, untimed, "compare.csv"))] == names[:3]


def test_costs_are_not_drawn_if_retention_is_undefined(tmp_path: Path) -> None:
    undefined = compare_table().assign(retention=np.nan, lower=np.nan, upper=np.nan)
    folder = run_folder(tmp_path / "run", "laccolith layerwise-finetune compare", undefined, "compare.csv")
    assert "cost_against_retention" not in [drawing.name for drawing in figures_of(folder)]


def test_a_run_is_drawn_into_its_folder_and_the_figures_are_closed(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", "laccolith patch-sweep", patch_table(op="skip", tokens=("image",)))
    paths = draw_run(folder)
    assert [path.png.name for path in paths] == ["token_map.png", "curves.png"]
    assert all(path.png.is_file() and path.svg.parent == folder / "figures" for path in paths)
    assert not plt.get_fignums()


def test_figures_that_a_killed_call_left_out_are_drawn_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder(tmp_path / "skip", "patch-sweep", example_table("skip_smol"))
    whole = [paths.png for paths in draw_run(run, out=tmp_path / "whole")]
    saved = []

    def save(axes: Panels, stem: Path) -> FigurePaths:
        if saved:
            raise KeyboardInterrupt
        saved.append(stem)
        return save_figure(axes, stem)

    with monkeypatch.context() as patched:
        patched.setattr(runs, "save_figure", save)
        with pytest.raises(KeyboardInterrupt):
            draw_run(run)
    drawn = drawn_figures(run)
    assert [path.read_bytes() for path in drawn] == [path.read_bytes() for path in whole]
    times = [path.stat().st_mtime_ns for path in drawn]
    assert [path.stat().st_mtime_ns for path in drawn_figures(run)] == times  # complete: nothing is drawn again
    drawn[-1].with_suffix(".svg").unlink()
    assert drawn_figures(run) == drawn
    assert drawn[-1].with_suffix(".svg").is_file()


def test_a_tuning_run_gives_the_diagram_of_its_plan_on_its_own_model(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", "laccolith layerwise-finetune", None)
    with pytest.raises(RunError, match=r"must contain plan\.json for a plan diagram"):
        list(figures_of(folder))
    plan = {"layers": "3-4", "train": ["projector"], "method": "full", "name": "band"}
    (folder / "plan.json").write_text(json.dumps({"plan": plan, "layers": [3, 4]}))
    (folder / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 12}}))
    (drawing,) = figures_of(folder)
    assert drawing.name == "plan"
    filled = [p for p in drawing.axes.patches if p.get_facecolor()[3] > 0]  # type: ignore[union-attr]
    assert len(drawing.axes.patches) == 5 + 12 and len(filled) == 3  # type: ignore[union-attr]
    evaluations_table().to_csv(folder / "evaluations.csv", index=False)
    assert [drawing.name for drawing in figures_of(folder)] == ["plan", "learning_curve"]
    (folder / "evaluations.csv").write_text("step,set\n1,seen\n")
    with pytest.raises(RunError, match=r"must be the table of a layerwise-finetune run, got no family"):
        list(figures_of(folder))
    evaluations_table().to_csv(folder / "evaluations.csv", index=False)
    (folder / "config.json").unlink()  # a run that goes on still, or saved adapters alone
    assert [drawing.name for drawing in figures_of(folder)] == ["learning_curve"]


@pytest.mark.parametrize(
    ("table", "name", "kind"),
    [
        (patch_table(), "results.csv", "patch-sweep"),
        (patch_table(), "results.parquet", "patch-sweep"),
        (probe_table(), "results.csv", "probe-sweep"),
        (compare_table(), "compare.csv", "layerwise-finetune compare"),
    ],
)
def test_without_a_manifest_a_run_is_known_by_its_table(
    table: pd.DataFrame, name: str, kind: str, tmp_path: Path
) -> None:
    assert kind_of_run(run_folder(tmp_path / "run", None, table, name)) == kind


def test_csv_and_parquet_give_the_same_figure(tmp_path: Path) -> None:
    results = patch_table(op="transplant", tokens=("",), names=("weights",), window="0-{0}")
    shown = []
    for name in ("results.csv", "results.parquet"):
        (drawing,) = figures_of(run_folder(tmp_path / name[8:], "laccolith patch-sweep", results, name))
        panel = next(iter(drawing.axes))  # type: ignore[arg-type]
        shown.append([(line.get_label(), np.asarray(line.get_ydata(), dtype=float).tolist()) for line in panel.lines])
    assert shown[0] == shown[1]


def test_what_is_no_finished_run_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="RUN must be a folder, got"):
        kind_of_run(tmp_path / "none")
    with pytest.raises(RunError, match=r"manifest\.json or a table of a run, got neither"):
        kind_of_run(run_folder(tmp_path / "empty", None, None))
    with pytest.raises(RunError, match="got one of 'laccolith bake'"):
        kind_of_run(run_folder(tmp_path / "other", "laccolith bake", None))
    with pytest.raises(RunError, match=r"RUN must be finished, got a probe-sweep run without results\.parquet"):
        list(figures_of(run_folder(tmp_path / "half", "laccolith probe-sweep", None)))
    lacking = run_folder(tmp_path / "old", "laccolith patch-sweep", patch_table().drop(columns="recovered"))
    with pytest.raises(RunError, match="table of a patch-sweep run, got no recovered"):
        list(figures_of(lacking))
    (tmp_path / "old" / "manifest.json").write_text("{")
    with pytest.raises(RunError, match="must be readable JSON"):
        kind_of_run(lacking)
    (tmp_path / "empty" / "compare.csv").write_text("")
    with pytest.raises(RunError, match="must be a readable table"):
        list(figures_of(tmp_path / "empty"))


def call(module: str, *arguments: str | Path, expected: int = 0) -> tuple[list[str], str]:
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == expected, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines(), done.stderr


def sizes(paths: Sequence[str]) -> set[int]:
    found = set()
    for path in paths:
        if path.endswith(".png"):
            with Image.open(path) as image:
                found.add(image.width)
    return found


def test_the_command_draws_every_run_and_prints_the_paths(tmp_path: Path) -> None:
    one = run_folder(tmp_path / "one", "laccolith patch-sweep", patch_table(op="knockout", tokens=("image->last",)))
    two = run_folder(tmp_path / "two", "laccolith patch-sweep", patch_table())
    printed, _ = call("figures", one, two, "--out", tmp_path / "paper", "--width", "one")
    stems = ["one/token_map", "one/curves", "two/token_map"]
    assert printed == [f"{tmp_path}/paper/{stem}{ending}" for stem in stems for ending in (".svg", ".png")]
    assert sizes(printed) == {700}
    assert all("<svg" in Path(path).read_text() for path in printed if path.endswith(".svg"))
    printed, _ = call("figures", two)
    assert printed == [f"{two}/figures/token_map{ending}" for ending in (".svg", ".png")]
    assert sizes(printed) == {1440}


def test_paths_that_the_terminal_cannot_show_are_printed_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder(tmp_path / "颜色", "laccolith patch-sweep", patch_table())
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", errors="strict")
    monkeypatch.setattr(sys, "stdout", out)
    main([str(run)])
    out.flush()
    assert rb"\u989c\u8272" in out.buffer.getvalue()  # type: ignore[attr-defined]


def test_the_command_refuses_what_is_no_run_before_it_draws_any(tmp_path: Path) -> None:
    good = run_folder(tmp_path / "good", "laccolith patch-sweep", patch_table())
    bad = run_folder(tmp_path / "bad", None, None)
    printed, errors = call("figures", good, bad, expected=2)
    assert not printed and not (good / "figures").exists()
    assert errors.startswith("python -m figures: RUN must contain a manifest.json or a table of a run, got neither")
    _, errors = call("figures", good, good, "--out", tmp_path, expected=2)
    assert "runs must have different names, got good, good" in errors


def test_help_tells_what_is_drawn_from_which_run() -> None:
    printed, _ = call("figures", "--help")
    text = "\n".join(printed)
    for word in ("probe-sweep", "patch-sweep", "layerwise-finetune", "score_by_layer", "--width", "--out", "examples:"):
        assert word in text


def test_a_name_in_a_table_writes_nothing_outside_the_run(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", "laccolith probe-sweep", probe_table())
    add_maps(folder)
    renamed = map_table().replace({"target": {"kind": "../../x$y"}})
    renamed.to_parquet(folder / "maps.parquet", index=False)
    told = json.loads((folder / "maps.json").read_text().replace('"kind"', '"../../x$y"'))
    (folder / "maps.json").write_text(json.dumps(told))
    paths = [path for saved in draw_run(folder) for path in saved]
    assert {path.parent for path in paths} == {folder / "figures"}
    assert all(path.is_file() for path in paths)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("k", ["../../secret", "0", None, 1.5, [0]])
def test_a_picture_outside_the_run_is_not_read(tmp_path: Path, k: object) -> None:
    folder = run_folder(tmp_path / "run", "laccolith probe-sweep", probe_table())
    add_maps(folder)
    told = json.loads((folder / "maps.json").read_text())
    told[0]["k"] = k
    (folder / "maps.json").write_text(json.dumps(told))
    with pytest.raises(RunError, match="k must be the number of a picture of the run"):
        list(figures_of(folder))


def test_links_out_of_a_run_are_not_followed(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", "laccolith probe-sweep", probe_table())
    add_maps(folder)
    (tmp_path / "elsewhere").mkdir()
    (folder / "figures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="figures must be a folder of the run, got a link"):
        draw_run(folder)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (folder / "maps" / "0.png").rename(tmp_path / "secret.png")
    (folder / "maps" / "0.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(RunError, match="k must be the number of a picture of the run"):
        list(figures_of(folder))


@pytest.mark.parametrize("damaged", ["[" * 100_000, "{", '{"k": 0}', "[1]", "[{}]"])
def test_damaged_maps_are_one_sentence(tmp_path: Path, damaged: str) -> None:
    folder = run_folder(tmp_path / "run", "laccolith probe-sweep", probe_table())
    add_maps(folder)
    (folder / "maps.json").write_text(damaged)
    with pytest.raises(RunError, match="maps.json must be"):
        list(figures_of(folder))


def test_names_of_files_are_safe_and_distinct() -> None:
    names = [
        "probe_map_colour",
        "../../x",
        "..//..//x",
        "a/b",
        "a b",
        "é",
        "è",
        "x" * 300,
        "x" * 301,
        "\ud83d",
        ".hidden",
    ]
    files = [file_name(name) for name in names]
    assert files[0] == names[0]
    assert len(set(files)) == len(names)
    assert all(re.fullmatch(r"[\w-][\w.-]{0,110}", name, re.ASCII) for name in files)
