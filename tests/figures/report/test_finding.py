"""What the report says first: the finding of every kind of run, the map at the best layer, maps of single pairs."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from figures.report import build_report
from figures.report.comparing import cost_scatter, token_plan_scatter
from figures.report.patching import patch_curves
from figures.runs import figures_of
from figures.style import series_look, series_numbers
from tests.figures.made_runs import patch_rows, write_compare_run, write_patch_run, write_probe_run
from tests.figures.test_report import data_of, sections


def test_a_tuning_run_shows_its_loss_and_what_it_cost(tmp_path: Path) -> None:
    run = write_compare_run(tmp_path / "run")
    (run / "manifest.json").write_text('{"kind": "laccolith layerwise-finetune", "settings": {"model": "smol"}}')
    lines = [{"step": step, "loss": 4.0 / step, "learning_rate": 1e-3} for step in (1, 2, 4)]
    lines.append({"step": 4, "train_runtime": 1.0, "train_loss": 2.0})
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "cost.json").write_text('{"trainable": 12, "step_seconds_median": 0.25, "note": "<b>"}')
    plan = {"plan": {"layers": "2-3", "train": ["projector"], "method": "lora"}, "layers": [2, 3]}
    (run / "plan.json").write_text(json.dumps({**plan, "trainable": 12, "total": 48}))
    (run / "config.json").write_text('{"text_config": {"num_hidden_layers": 6}}')
    scores = [
        {"step": step, "set": "seen", "family": "all", "metric": "accuracy", "score": score, "lower": score - 0.1,
         "upper": score + 0.1, "chance": 0.25, "n": 8}
        for step, score in ((2, 0.3), (4, 0.5))
    ]  # fmt: skip
    pd.DataFrame(scores).to_csv(run / "evaluations.csv", index=False)
    page = data_of(build_report([run]).html)["runs"][0]
    assert [section["title"] for section in page["sections"]] == [
        "What was found", "Scores while training", "Training loss", "What trains", "What it cost",
    ]  # fmt: skip
    lines = page["sections"][0]["lines"]
    assert lines[0] == "12 of 48 parameters train (25.0%)." and "from 4.000 nats a token (step 1) to 1.000" in lines[1]
    (scored,) = page["sections"][1]["choices"][0]["panels"]
    assert scored["series"]["score"] == [[2, 0.3, 0.2, 0.4, 0, "step 2"], [4, 0.5, 0.4, 0.6, 0, "step 4"]]
    assert scored["levels"] == {"chance": 0.25} and scored["y"]["range"] == [0, 1]
    plans = page["sections"][3]
    assert plans["plans"][0]["cells"] == ["", "full", "", "", "", "lora", "lora", "", "", "", ""]
    assert plans["columns"][3:9] == [*"012345"] and plans["methods"] == [
        ["full", "all weights train"], ["lora", "low-rank factors train (LoRA)"],
    ]  # fmt: skip
    assert [name for name, _ in page["files"]] == ["manifest.json", "plan.json", "cost.json"]  # all of it, but last
    found = sections(build_report([run]).html)
    assert [point[:2] for point in found["curves"]["choices"][0]["panels"][0]["series"]["loss"]] == [
        [1, 4],
        [2, 2],
        [4, 1],
    ]
    assert found["table"]["rows"] == [["parameters that train", 12, ""], ["time of a step, median", 0.25, "s"]]


def test_a_page_opens_on_the_peaks_and_on_the_map_at_the_best_layer(tmp_path: Path) -> None:
    run = write_probe_run(tmp_path / "run", n_maps=2)
    table = pd.read_parquet(run / "results.parquet")
    best = (table["site"] == "blocks.2.hook_resid_post") & (table["target"] == "colour") & (table["split"] == "cv")
    table.loc[best, ["score", "lower", "upper"]] = [0.97, 0.95, 0.99]
    table.loc[table["target"] == "kind", "q"] = 0.5
    for name in ("results.csv", "results.parquet"):
        getattr(table, "to_csv" if name.endswith("csv") else "to_parquet")(run / name, index=False)
    page = data_of(build_report([run]).html)["runs"][0]
    assert [section["title"] for section in page["sections"]] == [
        "What was found", "Where in the picture", "Score by layer", "All scores",
    ]  # fmt: skip
    finding, maps = page["sections"][:2]
    assert (
        "colour: best read in the language model at layer 2: balanced accuracy 0.97 [0.95, 0.99], chance 0.50, "
        "onset at layer 2."
    ) in finding["lines"]
    names = [column["name"] for column in finding["columns"]]
    peaks = {
        row[names.index("target")]: row[names.index("peak layer")] for row in finding["rows"] if "resid_post" in row
    }
    assert peaks["colour"] == "2"
    start = maps["start"]
    assert maps["choices"][start["choice"]]["label"] == "colour"
    assert maps["choices"][start["choice"]]["sites"][start["site"]]["site"] == "blocks.2.hook_resid_post"


def test_maps_of_several_pairs_are_on_their_own_pictures(tmp_path: Path) -> None:
    results = patch_rows(["patch(0,0)", "patch(0,1)"])
    run = write_patch_run(tmp_path / "run", results)
    pairs = {
        "id": ["a", "b"],
        "question": ["?", "?"],
        "answer": ["red", "blue"],
        "foil": ["blue", "red"],
        "batch": [0, 0],
    }
    pd.DataFrame(pairs).to_parquet(run / "pairs.parquet", index=False)
    values = pd.concat([results[["site", "tokens", "metric", "value", "clean", "corrupt"]].assign(
        id=name, recovered=results["recovered"] * scale) for name, scale in (("a", 0.5), ("b", 3.0))])  # fmt: skip
    values.to_parquet(run / "values.parquet", index=False)
    (run / "pictures").mkdir()
    for k, colour in enumerate(("red", "blue")):
        Image.new("RGB", (32, 32), colour).save(run / "pictures" / f"{k}.png")
    maps = sections(build_report([run]).html)["maps"]
    mean, first, second = maps["examples"]
    assert (mean["name"], mean["picture"], first["name"], second["name"]) == ("mean of 40 pairs", "", "a", "b")
    assert len({first["picture"], second["picture"], ""}) == 3
    rows = results[results["metric"] == "logit_difference"]
    for example, scale in ((mean, 1.0), (first, 0.5), (second, 3.0)):
        shown = [[cell[0] for cell in grid] for grid in example["values"][0]]
        expected = [list(own["recovered"] * scale) for _, own in rows.groupby("site", sort=False)]
        assert shown == [pytest.approx(line, rel=1e-5) for line in expected]
    assert second["scale"]["high"] > maps["scale"]["high"]
    assert first["values"][0][0][0][1:4] == [None, None, None]  # one pair has no interval
    drawn = [drawing.name for drawing in figures_of(run)]
    assert drawn == ["patch_map", "patch_map_0", "patch_map_1"]
    plt.close("all")
    alone = write_patch_run(tmp_path / "alone", results.assign(n=1))
    (one,) = sections(build_report([alone]).html)["maps"]["examples"]
    assert one["picture"]


def test_one_token_group_has_one_colour_in_every_figure() -> None:
    flows = ["image->question", "question->last", "image->last"]
    colours_of = []
    for tokens in (flows, flows[::-1], ["image->last"], ["mine", "image->last"]):
        curves = patch_curves(patch_rows(tokens))
        assert curves is not None
        drawn = {entry["label"]: entry["colour"] for entry in curves["series"]}
        colours_of.append(drawn["image → last"])
        assert len({drawn[flow.replace("->", " → ")] for flow in tokens}) == len(tokens)
    assert set(colours_of) == {"s0"}
    many = [series_look(number) for number in series_numbers([f"group {k}" for k in range(12)])]
    assert len(set(many)) == 12


def test_bars_are_described_by_the_interval_of_a_plan_that_has_one() -> None:
    table = pd.DataFrame(
        [("full", 1.0, 1.0, np.nan, np.nan, "none: the reference itself"), ("band", 0.8, 0.6, 0.5, 0.7, "95% made")],
        columns=["plan", "flops_ratio", "retention", "lower", "upper", "interval"],
    ).assign(family="all", condition="test", n=4, seeds=2)
    scatter = cost_scatter(table)
    assert scatter is not None
    assert scatter["choices"][0]["interval"] == "95% made; n = 4, seeds: 2"
    plans = table.assign(kept=table["retention"], kept_lower=table["lower"], kept_upper=table["upper"], split="test")
    scatter = token_plan_scatter(plans.assign(prefill_ratio=table["flops_ratio"]))
    assert scatter is not None
    assert scatter["choices"][0]["interval"] == "95% made"


def test_a_comparison_and_token_plans_open_on_what_is_kept(tmp_path: Path) -> None:
    page = data_of(build_report([write_compare_run(tmp_path / "run")]).html)["runs"][0]
    assert [section["title"] for section in page["sections"]] == [
        "What was found", "Cost against retention", "What trains", "All plans",
    ]  # fmt: skip
    lines = page["sections"][0]["lines"]
    assert lines[0] == "Full tuning scores 0.250 on seen drawings."
    assert "middle band keeps 0.60 [0.50, 0.66] of that, at 0.70 of the operations of a step." in lines
    assert not any(line.startswith("start ") for line in lines)
    table = pd.DataFrame(
        [("all", 1.0, 1.0, 1.0, 1.0), ("leave@8", 0.6, 0.97, 0.9, 1.02), ("leave@4", 0.4, 0.5, 0.4, 0.6)],
        columns=["plan", "prefill_ratio", "kept", "kept_lower", "kept_upper"],
    ).assign(model="smol", split="test", accuracy=0.5, n=70, interval="made")
    folder = tmp_path / "token-plans"
    folder.mkdir()
    table.to_csv(folder / "results.csv", index=False)
    finding = data_of(build_report([folder]).html)["runs"][0]["sections"][0]
    assert finding["lines"][0].startswith(
        "The cheapest plan that keeps 95% of the full model's accuracy is leave@8: it keeps 0.97 [0.90, 1.02] at 0.60"
    )
    table[table["plan"] != "leave@8"].to_csv(folder / "results.csv", index=False)
    finding = data_of(build_report([folder]).html)["runs"][0]["sections"][0]
    assert finding["lines"] == [
        "No token plan keeps 95% of the full model's accuracy (questions: test; point estimate)."
    ]


def test_noise_is_reported_as_nothing_found(tmp_path: Path) -> None:
    run = write_probe_run(tmp_path / "run", n_maps=1)
    table = pd.read_parquet(run / "results.parquet").assign(q=0.5)
    table.to_parquet(run / "results.parquet", index=False)
    page = data_of(build_report([run]).html)["runs"][0]
    assert page["sections"][0]["lines"] == [
        f"{target}: no layer of the language model is significantly above chance." for target in ("kind", "colour")
    ]
    assert page["sections"][1]["start"]["choice"] == 0
    nothing = patch_rows(["image", "last"]).assign(p_adjusted=0.5)
    lines = data_of(build_report([write_patch_run(tmp_path / "patch", nothing)]).html)["runs"][0]["sections"][0][
        "lines"
    ]
    assert all("no cell of resid_pre is significant" in line for line in lines) and len(lines) == 2
