import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from figures import draw_run, read_run
from figures.effects import with_effect
from figures.read_run import RunError
from figures.report import build_report
from figures.report.palette import colours
from figures.report.patching import patch_curves, patch_heat, shown_table
from figures.report.tables import plain_value, table_section
from figures.style import COLOURS
from tests.figures.made_runs import (
    HOSTILE,
    patch_rows,
    write_compare_run,
    write_manifest,
    write_patch_run,
    write_probe_run,
)
from tests.figures.test_style import APART, LINE_CONTRAST, SIGHT, TOGETHER, contrast, distance
from tests.test_layout import MODULES

DARK_PAPER = "#14171a"  # the background in ``page.css``
LEGIBLE = 4.5  # contrast that WCAG 2.2 asks of text


def data_of(page: str) -> dict[str, Any]:
    """What the page's data element holds, read as a browser reads it."""
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert len(found) == 1
    return dict(json.loads(found[0]))


def sections(page: str, run: int = 0) -> dict[str, dict[str, Any]]:
    return {section["type"]: section for section in data_of(page)["runs"][run]["sections"]}


def test_curves_hold_the_scores_intervals_and_controls_of_the_table(tmp_path: Path) -> None:
    run = write_probe_run(tmp_path / "run", n_maps=0)
    table = pd.read_parquet(run / "results.parquet")
    curves = sections(build_report([run]).html)["curves"]
    assert [panel["title"] for panel in curves["choices"][0]["panels"]] == ["kind", "colour"]
    panel = curves["choices"][0]["panels"][1]
    rows = table[(table["target"] == "colour") & (table["split"] == "cv")].set_index("site")
    assert len(panel["series"]["score"]) == len(rows) - 1  # raw pixels are a level
    for _, value, low, high, _, site in panel["series"]["score"]:
        assert [value, low, high] == pytest.approx(list(rows.loc[site, ["score", "lower", "upper"]]), rel=1e-5)
    for _, value, low, _, _, site in panel["series"]["control"]:
        assert value == pytest.approx(rows.loc[site, "control"], rel=1e-5) and low is None
    assert panel["levels"] == pytest.approx({"chance": 0.5, "pixels": rows.loc["pixels", "score"]}, rel=1e-5)
    assert "n = 60" in panel["subtitle"] and "unseen: n = 20" in panel["subtitle"]
    assert "95 % intervals over groups" in curves["caption"]


def test_sites_stand_in_the_order_of_the_forward_pass_with_a_gap_between_parts(tmp_path: Path) -> None:
    run = write_probe_run(tmp_path / "run", n_maps=0)
    panel = sections(build_report([run]).html)["curves"]["choices"][0]["panels"][0]
    sites = [point[5] for point in panel["series"]["score"]]
    assert sites == list(dict.fromkeys(pd.read_parquet(run / "results.parquet").query("part != 'pixels'")["site"]))
    parts = panel["x"]["parts"]
    assert [part["label"] for part in parts] == ["vision tower", "projector", "language model"]
    assert all(left["to"] < right["from"] for left, right in pairwise(parts))
    assert "input" in [label for _, label in panel["x"]["ticks"]]


def test_a_run_without_maps_has_a_page_without_them(tmp_path: Path) -> None:
    made = build_report([write_probe_run(tmp_path / "run", n_maps=0)])
    assert set(sections(made.html)) == {"curves", "table"} and made.shown == made.left_out == 0
    assert "maps" in sections(build_report([write_probe_run(tmp_path / "with", n_maps=1)]).html)


def test_examples_beyond_the_budget_are_left_out_and_counted(tmp_path: Path) -> None:
    runs = [write_probe_run(tmp_path / name, n_maps=6, grid=12) for name in ("one", "two")]
    whole = build_report(runs)
    assert (whole.shown, whole.left_out) == (12, 0)
    budget = whole.size - 20_000
    made = build_report(runs, budget=budget)
    assert made.size <= budget and 0 < made.left_out < 12 and made.shown + made.left_out == 12
    told = [sections(made.html, run)["maps"] for run in (0, 1)]
    assert sum(section["left_out"] for section in told) == made.left_out
    assert abs(len(told[0]["examples"]) - len(told[1]["examples"])) <= 1  # in turn from each run
    with pytest.raises(ValueError, match="report must stay below 30,000 bytes"):
        build_report(runs, budget=30_000)


def test_nothing_in_the_data_can_end_its_element_and_all_of_it_comes_back(tmp_path: Path) -> None:
    made = build_report([write_probe_run(tmp_path / "<b>&", n_maps=1)])
    assert HOSTILE not in made.html
    text = re.findall(r'id="data">(.*?)</script>', made.html, re.DOTALL)[0]
    assert not set("<>&") & set(text)
    maps = sections(made.html)["maps"]
    assert maps["examples"][0]["question"] == HOSTILE
    assert "<title>Laccolith report: &lt;b&gt;&amp;</title>" in made.html


def test_a_lone_surrogate_in_a_question_is_one_sentence(tmp_path: Path) -> None:
    run = write_probe_run(tmp_path / "run", n_maps=1)
    told = json.loads((run / "maps.json").read_text())
    told[0]["question"] = "half \ud83d a sign"
    (run / "maps.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"maps\.json must be readable JSON, got .* half a surrogate pair"):
        build_report([run])


def test_hostile_names_of_groups_labels_examples_and_plans_stay_text(tmp_path: Path) -> None:
    probed, compared = write_probe_run(tmp_path / "a", n_maps=1), write_compare_run(tmp_path / "b")
    told = json.loads((probed / "maps.json").read_text())
    told[0] |= {"example": HOSTILE, "labels": {"kind": HOSTILE, "colour": "red"}}
    (probed / "maps.json").write_text(json.dumps(told))
    pd.read_parquet(probed / "maps.parquet").assign(example=HOSTILE).to_parquet(probed / "maps.parquet")
    pd.read_csv(compared / "compare.csv").replace("middle band", HOSTILE).to_csv(compared / "compare.csv", index=False)
    patched = write_patch_run(tmp_path / "c", patch_rows([HOSTILE, "last"]))
    page = build_report([probed, compared, patched]).html
    text = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)[0]
    assert HOSTILE not in page and not set("<>&\u2028") & set(text)
    example = sections(page)["maps"]["examples"][0]
    assert (example["name"], example["labels"]["kind"]) == (HOSTILE, HOSTILE)
    assert HOSTILE in [point["label"] for point in sections(page, 1)["scatter"]["choices"][0]["points"]]
    assert HOSTILE in [series["label"] for series in sections(page, 2)["curves"]["series"]]


def test_the_page_names_no_address_outside_itself(tmp_path: Path) -> None:
    page = build_report([write_probe_run(tmp_path / "run", n_maps=1)]).html
    before = page[: page.index('id="data"')]
    assert "default-src 'none'" in before
    assert "unsafe" not in before
    code = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)
    assert set(re.findall(r"https?://[^\s\"']+", code)) == {"http://www.w3.org/2000/svg"}  # a name, never loaded
    assert "innerHTML" not in code and "@import" not in code and "url(http" not in code


def test_columns_in_which_all_rows_agree_are_told_once_and_long_tables_are_cut_with_a_word() -> None:
    table = pd.DataFrame({"model": ["smol"] * 9, "layer": range(9), "score": [0.5] * 8 + [None], "none": [None] * 9})
    section = table_section(table, title="t", source="results.csv", most_rows=4)
    assert section["same"] == [["model", "smol"]]
    assert [column["name"] for column in section["columns"]] == ["layer", "score"]
    assert [column["kind"] for column in section["columns"]] == ["int", "float"]
    assert len(section["rows"]) == 4
    assert section["note"] == "5 of 9 rows are left out here; results.csv holds them all."
    assert table_section(table, title="t", source="x")["rows"][8] == [8, None]
    assert table_section(table, title="t", source="x")["note"] == ""


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (float("nan"), None),
        (pd.NA, None),
        (1.23456789, 1.23457),
        (123456789.0, 123456789),
        (True, True),
        (float("inf"), "inf"),
        ("a", "a"),
    ],
)
def test_values_become_what_json_can_hold(value: object, plain: object) -> None:
    assert plain_value(value) == plain


def test_the_lost_fraction_turns_the_recovered_one_and_its_interval_round() -> None:
    results = patch_rows(["last"], unchanged="clean")
    rows = with_effect(results)
    assert list(rows["effect"]) == pytest.approx(list(1 - results["recovered"]))
    assert list(rows["effect_lower"]) == pytest.approx(list(1 - results["recovered_upper"]))
    assert (rows["effect_lower"] < rows["effect"]).all() and (rows["effect"] < rows["effect_upper"]).all()
    assert list(shown_table(results)["lost"]) == pytest.approx(list(rows["effect"]))
    corrupt = patch_rows(["last"])
    assert list(with_effect(corrupt)["effect"]) == pytest.approx(list(corrupt["recovered"]))
    assert "lost" not in shown_table(corrupt)


@pytest.mark.parametrize("unchanged", ["corrupt", "clean"])
def test_curves_of_a_patch_sweep_hold_the_values_intervals_and_levels_of_the_table(unchanged: str) -> None:
    results = patch_rows(["image", "last"], unchanged=unchanged)
    curves = patch_curves(results)
    assert curves is not None
    panels = curves["choices"][0]["panels"]
    assert len(panels) == 4  # two metrics, each with its fraction
    lost = unchanged == "clean"
    for metric, (plain, fraction) in zip(("logit_difference", "accuracy"), (panels[:2], panels[2:]), strict=True):
        rows = results[(results["metric"] == metric) & (results["tokens"] == "last")].set_index("layer")
        key = "language_model resid_pre last"
        for layer, *point in (entry[:4] for entry in plain["series"][key]):
            assert point == pytest.approx(list(rows.loc[layer, ["value", "lower", "upper"]]), rel=1e-5)
        for layer, *point in (entry[:4] for entry in fraction["series"][key]):
            middle, low, high = rows.loc[layer, ["recovered", "recovered_lower", "recovered_upper"]]
            assert point == pytest.approx([1 - middle, 1 - high, 1 - low] if lost else [middle, low, high], abs=1e-5)
        assert len(plain["series"][key]) == len(fraction["series"][key]) == len(rows) == 4
        assert plain["levels"] == {"clean": rows["clean"].iloc[0], "corrupt": 0.0}
        assert fraction["levels"] == ({"clean": 0.0, "corrupt": 1.0} if lost else {"clean": 1.0, "corrupt": 0.0})


def test_one_activation_of_two_parts_makes_two_curves() -> None:
    language, vision = patch_rows(["image"]), patch_rows(["image"], part="vision_tower", seed=2)
    curves = patch_curves(pd.concat([language, vision], ignore_index=True))
    assert curves is not None
    panel = curves["choices"][0]["panels"][0]
    labels = [series["label"] for series in curves["series"][:2]]
    assert labels == ["language model resid_pre, image", "vision tower resid_pre, image"]
    for rows, series in ((language, curves["series"][0]), (vision, curves["series"][1])):
        points = panel["series"][series["key"]]
        assert [point[0] for point in points] == [0, 1, 2, 3]
        values = rows[rows["metric"] == "logit_difference"]["value"]
        assert [point[1] for point in points] == pytest.approx(list(values), rel=1e-5)
    assert len({series["mark"] for series in curves["series"][:2]}) == 2  # apart in grey too


def test_the_levels_of_a_transplant_are_those_of_donor_and_recipient() -> None:
    usual, moved = patch_rows(["image", "last"]), patch_rows(["image", "last"]).assign(op="transplant")
    for results, clean, corrupt in ((usual, "clean run", "corrupt run"), (moved, "donor", "recipient")):
        curves, heat = patch_curves(results), patch_heat(results)
        assert curves is not None and heat is not None
        assert [series["label"] for series in curves["series"][-2:]] == [clean, corrupt]
        for section in (curves, heat):
            assert f"0 as the {corrupt}, 1 as the {clean}" in section["caption"]


def test_a_patch_sweep_shows_curves_heat_and_patches_as_far_as_it_has_them(tmp_path: Path) -> None:
    def kinds(name: str, results: pd.DataFrame) -> set[str]:
        return set(sections(build_report([write_patch_run(tmp_path / name, results)]).html))

    assert kinds("groups", patch_rows(["image", "last"])) == {"curves", "heat", "table"}
    assert kinds("one", patch_rows(["last"])) == {"curves", "table"}
    assert kinds("patches", patch_rows(["patch(0,0)", "patch(0,1)"])) == {"maps", "table"}
    assert kinds("heads", patch_rows(["last"], heads=["0", "1"])) == {"heat", "table"}


def test_colours_are_those_of_all_figures_in_light_and_legible_in_dark() -> None:
    light, dark = colours("light"), colours("dark")
    assert {name: light[name] for name in COLOURS} == COLOURS and light.keys() == dark.keys()
    faint = {name for name, colour in light.items() if contrast(colour, DARK_PAPER) < LEGIBLE}
    assert "score" in faint  # there is something to do
    assert all(contrast(colour, DARK_PAPER) >= LEGIBLE for name, colour in dark.items() if name != "undefined")
    assert len({dark[name] for name in ("score", "transfer", "control", "random_init", "pixels", "chance")}) == 6
    curves = {name: colour for name, colour in light.items() if name != "undefined"}  # the fill of an empty cell
    assert {name: contrast(c, "#ffffff") for name, c in curves.items() if contrast(c, "#ffffff") < LINE_CONTRAST} == {}


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_of_one_figure_stay_apart_on_dark_paper(sight: str) -> None:
    light, dark = colours("light"), colours("dark")
    of_light: dict[str, set[str]] = {}
    for name, colour in light.items():
        of_light.setdefault(colour, set()).add(dark[name])
    assert all(len(found) == 1 for found in of_light.values())  # what is one colour in light is one in dark
    for together in TOGETHER.values():
        shades = [next(iter(of_light[colour])) for colour in together]
        close = [pair for pair in combinations(shades, 2) if distance(*pair, sight) < APART]
        assert not close


def unfinish(run: Path) -> None:
    (run / "results.parquet").unlink()
    (run / "results.csv").unlink()


def replace(name: str, old: str, new: str) -> Callable[[Path], object]:
    """Changes a text file of the run."""
    return lambda run: (run / name).write_text((run / name).read_text().replace(old, new))


def cut_maps(run: Path) -> None:
    pd.read_parquet(run / "maps.parquet").iloc[1:].to_parquet(run / "maps.parquet")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "not finished": (unfinish, "RUN must be finished"),
    "another kind": (replace("manifest.json", "probe-sweep", "guess"), "RUN must be a run of"),
    "a picture is gone": (lambda run: (run / "maps" / "0.png").unlink(), "picture must exist, got '0.png'"),
    "no picture": (lambda run: (run / "maps" / "1.png").write_text("no"), "AVIF), got '1.png'"),
    "rows are gone": (cut_maps, "each patch of each site once"),
    "another example": (replace("maps.json", "scene-1", "scene-9"), "maps.json must contain examples of maps.parquet"),
    "an unknown class": (replace("maps.json", '"taxi"', '"bus"'), "predicted must be one of the classes"),
}


@pytest.mark.parametrize(("breaks", "message"), BROKEN.values(), ids=BROKEN)
def test_a_run_whose_files_do_not_fit_is_refused_with_what_is_wrong(
    tmp_path: Path, breaks: Callable[[Path], object], message: str
) -> None:
    run = write_probe_run(tmp_path / "run", n_maps=2)
    build_report([run])
    breaks(run)
    with pytest.raises(ValueError, match=re.escape(message)):
        build_report([run])


def kinds_of_runs() -> set[str]:
    """The commands that write runs, by the packages' own definitions."""
    found = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "RunKind":
                (name,) = (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))
                found.add(str(name))
    return found


def test_runs_of_every_command_are_known_and_those_without_figures_are_a_table(tmp_path: Path) -> None:
    assert kinds_of_runs() == set(read_run.KINDS)
    for number, kind in enumerate(read_run.LISTED):
        run = tmp_path / str(number)
        write_manifest(run, kind, settings={"model": "smol"}, finished="2026-01-01")
        with pytest.raises(RunError, match="RUN must be finished"):
            build_report([run])
        pd.DataFrame({"part": ["vqa"], "samples": [3]}).to_csv(run / "results.csv", index=False)
        page = build_report([run]).html
        (shown,) = data_of(page)["runs"]
        assert (shown["command"], shown["title"]) == (kind, f"smol: {kind}")
        (table,) = shown["sections"]
        assert "vqa" in json.dumps(table)
        with pytest.raises(RunError, match="RUN must be a run that has figures"):
            draw_run(run)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="RUN must be a folder"):
        build_report([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="runs must name at least one"):
        build_report([])


@pytest.mark.parametrize("command", ["probes", "interventions", "tuning"])
def test_every_command_writes_a_page_about_runs_of_any_of_them(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib import import_module

    main = import_module(f"{command}.cli").main
    runs = [write_probe_run(tmp_path / "a", n_maps=1), write_compare_run(tmp_path / "b")]
    out = tmp_path / "new" / "page.html"
    main(["report", *map(str, runs), "--out", str(out)])
    assert f"report: {out} (0." in capsys.readouterr().out
    assert [run["name"] for run in data_of(out.read_text(encoding="utf-8"))["runs"]] == ["a", "b"]
    assert list(out.parent.iterdir()) == [out]
    for arguments, sentence in (
        ([str(tmp_path), "--out", str(out)], "RUN must contain a manifest.json"),
        ([str(runs[0]), "--out", str(tmp_path)], ""),
    ):
        with pytest.raises(SystemExit) as end:
            main(["report", *arguments])
        error = capsys.readouterr().err
        assert end.value.code == 2 and sentence in error and error.count("\n") == 1


def test_the_command_runs_as_a_process_and_needs_no_model(tmp_path: Path) -> None:
    run, out = write_probe_run(tmp_path / "run", n_maps=1), tmp_path / "page.html"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "probes.cli", "report", str(run), "--out", str(out)],
        capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    assert out.stat().st_size > 50_000
    assert not re.search(r"\| +(torch|transformers)$", done.stderr, re.MULTILINE)
