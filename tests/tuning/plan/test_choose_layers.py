"""``auto:RUN``: the band that a run points at, from made-up tables with a known answer and from real ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from figures.effects import of_earlier_version
from figures.report.findings import patch_finding, probe_finding
from interventions.report_table import render_summary as patch_summary
from probes.report_table import render_summary as probe_summary
from tasks.errors import UserError
from tuning.plan.choose_layers import choose_layers, describe_choice
from tuning.plan.layers import select_layers

GALLERY = Path(__file__).parents[3] / "figures" / "gallery"


def probe_table(path: Path, scores: list[float]) -> Path:
    """A probe run whose score by layer is given."""
    rows = [
        {"part": "language_model", "name": "resid_post", "layer": layer, "target": target, "split": "cv",
         "score": score, "chance": 0.1, "p_max": 0.001 if score > 0.1 else 0.9}
        for target in ("kind", "place")
        for layer, score in enumerate(scores)
    ]  # fmt: skip
    path.mkdir()
    pd.DataFrame(rows).to_csv(path / "results.csv", index=False)
    return path


def test_auto_takes_the_shortest_band_in_which_probes_gain(tmp_path: Path) -> None:
    run = probe_table(tmp_path / "run", [0.1, 0.12, 0.3, 0.6, 0.88, 0.9, 0.9, 0.85])
    chosen = choose_layers(run, 8)
    assert chosen.layers == (2, 3, 4)
    assert chosen.evidence["evidence"].sum() == pytest.approx(1)
    assert select_layers(f"auto:{run}", 8) == (2, 3, 4)
    shown = describe_choice(run, 8)
    assert "shortest band with at least 80%" in shown
    assert shown.count("<") == 3


@pytest.mark.parametrize("column", ["q", "p_adjusted"])
def test_a_table_from_before_p_max_is_read_with_a_rule_that_says_so(tmp_path: Path, column: str) -> None:
    run = probe_table(tmp_path / "run", [0.1, 0.12, 0.3, 0.6, 0.88, 0.9, 0.9, 0.85])
    assert "before p_max" not in choose_layers(run, 8).rule
    table = pd.read_csv(run / "results.csv").rename(columns={"p_max": column})
    table.to_csv(run / "results.csv", index=False)
    chosen = choose_layers(run, 8)
    assert chosen.layers == (2, 3, 4)
    assert f"a false discovery rate ({column}), which is not corrected for the choice" in chosen.rule
    assert "run the sweep again" in describe_choice(run, 8).splitlines()[0]
    assert of_earlier_version(table) in chosen.rule
    table.assign(**{column: 0.5}).to_csv(run / "results.csv", index=False)
    with pytest.raises(UserError, match=rf"significant \({column} < 0.05\), got none"):
        choose_layers(run, 8)


@pytest.mark.parametrize("name", ["score_by_layer_smol", "knockout_smol"])
def test_summaries_of_a_table_from_before_p_max_say_so(name: str) -> None:
    table = pd.read_csv(GALLERY / f"{name}.csv")
    table = table.drop(columns=[column for column in table if column == "p_max" or str(column).startswith("best_")])
    summary, finding = (probe_summary, probe_finding) if "probe" in table else (patch_summary, patch_finding)
    said = of_earlier_version(table)
    assert said and said in str(summary(table).caption) and said in finding(table)["caption"]
    now = table.assign(p_max=0.5, best_share=np.nan, best_score=np.nan, best_recovered=np.nan, best_lower=np.nan)
    assert "before p_max" not in str(summary(now.assign(best_upper=np.nan)).caption)


def test_auto_reads_the_drop_of_a_patch_run(tmp_path: Path) -> None:
    recovered = [1.0, 1.0, 0.9, 0.4, 0.1, 0.05, 0.0, 0.0]
    rows = [
        {
            "op": "patch",
            "site": f"blocks.{i}.hook_resid_pre",
            "layer": i,
            "tokens": "image",
            "recovered": r,
            "p_max": 0.001,
        }
        for i, r in enumerate(recovered)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "results.csv", index=False)
    assert choose_layers(tmp_path, 8).layers == (2, 3)


def test_auto_refuses_a_run_without_evidence_or_of_another_depth(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="auto must find a layer that is significant"):
        choose_layers(probe_table(tmp_path / "flat", [0.1] * 8), 8)
    with pytest.raises(UserError, match="got layers 0 to 7"):
        choose_layers(probe_table(tmp_path / "deep", [0.1] * 4 + [0.9] * 4), 4)


def test_auto_takes_no_evidence_from_what_is_not_significant(tmp_path: Path) -> None:
    run = probe_table(tmp_path / "run", [0.1, 0.1, 0.9, 0.9, 0.9, 0.95, 0.9, 0.9])
    table = pd.read_csv(run / "results.csv")
    lucky = table["layer"] == 0
    table[lucky] = table[lucky].assign(score=0.8, p_max=0.2)
    table.to_csv(run / "results.csv", index=False)
    assert choose_layers(run, 8).layers == (2,)
    table.assign(p_max=0.2).to_csv(run / "results.csv", index=False)
    with pytest.raises(UserError, match="auto must find a layer that is significant, corrected for the choice"):
        choose_layers(run, 8)
    noise = patch_table(tmp_path / "noise", [0.4, 0.1, 0.3, 0.2], p_max=0.3)
    with pytest.raises(UserError, match="Use more examples, or name the layers yourself"):
        choose_layers(noise, 4)
    table.drop(columns="p_max").assign(q=0.01).to_csv(run / "results.csv", index=False)  # from before p_max
    assert choose_layers(run, 8).layers == (0,)


def patch_table(path: Path, recovered: list[float], **columns: object) -> Path:
    """A patch run with one cell a layer; ``{i}`` in a column is the layer."""
    rows = [
        {"op": "patch", "site": "blocks.{i}.hook_resid_pre", "layer": i, "window": "{i}", "tokens": "image",
         "metric": "logit_difference", "unchanged": "corrupt", "recovered": r, "p_max": 0.001, **columns}
        for i, r in enumerate(recovered)
    ]  # fmt: skip
    filled = [{k: v.format(i=row["layer"]) if isinstance(v, str) else v for k, v in row.items()} for row in rows]
    path.mkdir(exist_ok=True)
    pd.DataFrame(filled).to_csv(path / "results.csv", index=False)
    return path


def evidence(run: Path, n_layers: int = 4) -> list[float]:
    return [round(share, 6) for share in choose_layers(run, n_layers).evidence["evidence"]]


def test_the_stream_entering_and_leaving_a_block_point_at_the_same_block(tmp_path: Path) -> None:
    entering = patch_table(tmp_path / "pre", [1.0, 1.0, 0.0, 0.0])  # block 1 takes it away
    leaving = patch_table(tmp_path / "post", [1.0, 0.0, 0.0, 0.0], site="blocks.{i}.hook_resid_post")
    assert evidence(entering) == evidence(leaving) == [0, 1, 0, 0]


def test_a_run_that_starts_from_the_clean_one_counts_what_is_lost(tmp_path: Path) -> None:
    run = patch_table(
        tmp_path / "run", [1.0, 1.0, 0.2, 1.0], op="knockout", site="blocks.{i}.attn.hook_pattern", unchanged="clean",
        tokens="image->last",
    )  # fmt: skip
    assert evidence(run) == [0, 0, 1, 0]
    rule = choose_layers(run, 4).rule
    assert "size of the lost fraction of the logit_difference under knockout of image->last" in rule


def test_windows_that_grow_count_what_each_layer_adds(tmp_path: Path) -> None:
    up = patch_table(tmp_path / "up", [0.0, 0.5, 1.0, 1.0], op="transplant", site="weights", window="0-{i}")
    assert evidence(up) == [0, 0.5, 0.5, 0]
    on = patch_table(tmp_path / "on", [0.0, 0.5, 1.0, 1.0], op="skip", site="blocks.{i}.hook_resid_post",
                     window="{i}-3", unchanged="clean")  # fmt: skip
    assert evidence(on) == [0.5, 0.5, 0, 0]


def test_one_metric_and_the_image_s_groups_are_read_where_a_run_has_more(tmp_path: Path) -> None:
    one = pd.read_csv(patch_table(tmp_path / "a", [1.0, 1.0, 0.0, 0.0]) / "results.csv")
    other = pd.read_csv(patch_table(tmp_path / "b", [0.0, 0.0, 0.0, 1.0]) / "results.csv")
    mixed = [one, other.assign(metric="accuracy"), other.assign(tokens="last"), other.assign(tokens="image_edge")]
    pd.concat(mixed).to_csv(tmp_path / "all.csv", index=False)
    assert evidence(tmp_path / "all.csv") == [0, 1, 0, 0]


# What the committed tables of smol show (docs/interventions.md): image tokens are read within block 23.
REAL = {
    "token_map": ((23,), "change of the recovered fraction of the logit_difference under patch of image"),
    "knockout": (None, "size of the lost fraction of the logit_difference under knockout of image->question"),
    "skip": (None, "change of the lost fraction of the logit_difference under skip of image"),
    "transplant": (None, "change of the recovered fraction of the logit_difference under transplant"),
    "score_by_layer": (None, "gain in cross-validated probe score"),
}


@pytest.mark.parametrize("name", REAL)
def test_the_committed_tables_of_real_sweeps_give_a_band_with_its_rule(name: str) -> None:
    layers, rule = REAL[name]
    path = GALLERY / f"{name}_smol.csv"
    chosen = choose_layers(path, 30)
    assert rule in chosen.rule
    assert chosen.evidence["evidence"].sum() == pytest.approx(1)
    held = chosen.evidence.loc[list(chosen.layers), "evidence"].sum()
    assert held >= 0.8 - 1e-9
    assert select_layers(f"auto:{path}", 30) == chosen.layers
    if layers is not None:
        assert chosen.layers == layers
    assert describe_choice(path, 30).count(" <") == len(chosen.layers)


def test_a_real_table_of_another_depth_or_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="several of the model's 12 layers, got layers 0 to 29"):
        choose_layers(GALLERY / "token_map_smol.csv", 12)
    pd.DataFrame({"plan": ["full"], "score": np.ones(1)}).to_csv(tmp_path / "results.csv", index=False)
    with pytest.raises(UserError, match="with other columns"):
        choose_layers(tmp_path, 30)
