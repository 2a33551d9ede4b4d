"""``geometry-sweep``: fast measures against the eager ones, planted layers, its life, its figures, and bad input."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from safetensors.torch import save

import figures
from figures.geometry.draw import draw_geometry, draw_layer_map
from probes.activations.write import write_activations
from probes.geometry import (
    cosine_gap,
    gride,
    id_correlation,
    information_imbalance,
    label_overlap,
    linear_cka,
    mutual_knn,
    neighbourhood_overlap,
    two_nn,
)
from probes.geometry.compare import MeasurePlan, halves, measure
from probes.geometry.search import Members, Searched
from probes.geometry.sweep import layer_jobs
from probes.geometry.sweep.cli import main
from probes.geometry.sweep.config import GeometryConfig
from probes.geometry.sweep.estimate import GeometryEstimate
from probes.geometry.sweep.findings import (
    HIGH_RANK,
    INTERVAL,
    best_place,
    described,
    has_interval,
    interval_of,
    judge_nearest,
    judge_peak,
)
from probes.geometry.sweep.layer_jobs import read_job
from probes.geometry.sweep.run import finished_geometry_sweep, run_geometry_sweep
from probes.geometry.sweep.sides import choose_rows, open_comparisons
from probes.geometry.sweep.table import COLUMNS, FINDING_COLUMNS, MAP_COLUMNS
from records.manifest import commit
from records.resampling import draw_permutations, permutation_p
from records.run import FinishedRun
from tasks.errors import UserError
from tests.damage import flip, unfinish
from tests.probes.geometry.test_measures import views

N, WIDTH = 64, 12
SHARED = (0.0, 1.0, 0.3)  # of the latent in each layer: image and caption are nearest at layer 1
Values = npt.NDArray[np.float32]
PLAN = MeasurePlan(rank=(2, 4), k=5, mutual_k=4, largest=8, draws=6, shuffles=19, seed=3)


def site(layer: int) -> str:
    """The full name of a layer's site."""
    return f"blocks.{layer}.hook_resid_post"


def made_arrays(seed: int = 0, *, shared: tuple[float, ...] = SHARED, n: int = N) -> dict[str, Any]:
    """Image and caption of ``n`` scenes: at each layer a view of one latent, 4-d, and noise of their own."""
    latent = np.random.default_rng(0).normal(size=(n, 4))
    draw = np.random.default_rng(seed)
    arrays: dict[str, Any] = {"image": {}, "caption": {}}
    for layer, share in enumerate(shared):
        for condition in arrays:
            noise = 0.2 * draw.normal(size=(n, WIDTH)) + (1 - share) * draw.normal(size=(n, WIDTH))
            values = share * latent @ draw.normal(size=(4, WIDTH)) + noise + 5
            arrays[condition][site(layer)] = {"last": values.astype(np.float32)}
    return arrays


def made_run(folder: Path, arrays: Any, *, name: str = "made", digest: str = "d", **columns: Any) -> Path:
    """A run directory with these activations."""
    n = len(next(iter(next(iter(arrays["image"].values())).values())))
    table = pd.DataFrame({"id": [f"e{i}" for i in range(n)], "label_kind": ["cat", "dog"] * (n // 2), **columns})
    manifest = {"settings": {"model": name}, "model": {"id": name, "weight_hash": name}, "data": {"digest": digest}}
    write_activations(folder, arrays, table, manifest)
    return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of ``made_arrays``."""
    return made_run(tmp_path_factory.mktemp("stored") / "acts", made_arrays())


def config(run: Path, out: Path, **options: Any) -> GeometryConfig:
    """Few draws on few examples."""
    few = {"rank": (2, 4), "k": 5, "mutual_k": 4, "largest": 8, "draws": 6, "shuffles": 19, "seed": 3}
    return GeometryConfig(run, **{**few, **options}, out=out)


def run(settings: GeometryConfig) -> FinishedRun:
    """A finished run; its figures, which take seconds, are left to the test of the command."""
    with patch("figures.drawn_figures", return_value=()):
        finished = run_geometry_sweep(settings)
    assert isinstance(finished, FinishedRun)
    return finished


@pytest.fixture(scope="module")
def finished(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run on them, with labels and a random model that shares nothing at any layer."""
    folder = tmp_path_factory.mktemp("finished")
    random = made_run(folder / "random", made_arrays(9, shared=(0.0, 0.0, 0.0)), name="random")
    return run(config(stored, folder / "run", target=("kind",), random=random))


def eager(a: Values, b: Values, kind: npt.NDArray[np.int64], *, k: int = 5, label_k: int = 5) -> dict[str, float]:
    """Every measure by its eager function."""
    imbalance = information_imbalance(a, b)
    return {
        "a two_nn": two_nn(a).value, "b two_nn": two_nn(b).value,
        "a gride 2,4": gride(a, rank=(2, 4)).value, "b gride 4,8": gride(b, rank=(4, 8)).value,
        "b label_overlap kind": label_overlap(b, kind, k=label_k).value,
        "overlap": neighbourhood_overlap(a, b, k=k).value, "mutual_knn": mutual_knn(a, b, k=4).value,
        "imbalance_a_to_b": imbalance.a_to_b, "imbalance_b_to_a": imbalance.b_to_a,
        "cka": linear_cka(a, b, unbiased=False), "cka_unbiased": linear_cka(a, b), "cosine_gap": cosine_gap(a, b),
        "id_correlation": id_correlation(a, b, draws=1).value,
    }  # fmt: skip


def test_fast_measures_equal_the_eager_ones_on_halves_and_shuffles_too() -> None:
    a, b = (points.astype(np.float32) for points in views(0))
    kind = np.arange(60) % 3
    one, other = (Searched.of(torch.from_numpy(points), k=PLAN.listed, mutual_k=4) for points in (a, b))
    found = measure(one, other, PLAN, {"kind": kind})
    for name, value in eager(a, b, kind).items():
        assert found.values[name] == pytest.approx(value, abs=1e-5), name
    members = list(halves(60, PLAN, torch.device("cpu")))[2].rows.numpy()
    assert len(set(members)) == 30, "a half has no copies"
    half = eager(a[members], b[members], kind[members], k=4, label_k=2)  # 5 / sqrt(2), 5 // 2
    del half["id_correlation"]  # its coordinates are standardised once, over all points
    for name, value in half.items():
        assert found.draws[name][2] == pytest.approx(value, abs=1e-4), name
    order = draw_permutations(np.arange(60), draws=19, generator=np.random.default_rng(4))[7]
    shuffled = eager(a, b[order], kind)
    for name in ("overlap", "mutual_knn", "imbalance_a_to_b", "imbalance_b_to_a", "cka", "cka_unbiased", "cosine_gap"):
        assert found.shuffles[name][7] == pytest.approx(shuffled[name], abs=1e-4), name
    assert found.shuffles["id_correlation"][7] == pytest.approx(shuffled["id_correlation"], abs=1e-4)
    wanted = label_overlap(b, kind[order], k=5).value
    assert found.shuffles["b label_overlap kind"][7] == pytest.approx(wanted)
    assert found.errors["a gride 2,4"] == pytest.approx(gride(a, rank=(2, 4)).error, rel=1e-4)


def test_views_of_one_latent_are_found_and_independent_ones_at_the_nominal_rate() -> None:
    names = ("overlap", "mutual_knn", "imbalance_a_to_b", "imbalance_b_to_a", "cka", "cka_unbiased", "id_correlation")
    hits = {kind: dict.fromkeys(names, 0) for kind in ("one latent", "independent")}
    for seed in range(50):
        plan = MeasurePlan((2, 4), 5, 4, 4, draws=2, shuffles=19, seed=seed)
        a, b = views(seed, n=100, noise=0.02)
        other = np.random.default_rng(1000 + seed).normal(size=b.shape)
        for kind, points in (("one latent", b), ("independent", other)):
            if kind == "one latent" and seed >= 10:
                continue
            sides = (Searched.of(torch.from_numpy(x).float(), k=5, mutual_k=4) for x in (a, points))
            found = measure(*sides, plan)
            for name in names:
                sign = -1 if name.startswith("imbalance") else 1
                hits[kind][name] += permutation_p(sign * found.values[name], sign * found.shuffles[name]) <= 0.05
    assert hits["one latent"].pop("id_correlation") >= 8  # the only one whose dimensions are known to a few percent
    assert set(hits["one latent"].values()) == {10}
    assert max(hits["independent"].values()) <= 7  # at a rate of 5 %, 8 or more of 50 have a probability below 0.4 %


def test_lists_that_are_too_short_for_a_half_are_searched_again() -> None:
    points = torch.from_numpy(views(0)[0].astype(np.float32))
    whole = Searched.of(points, k=30, mutual_k=4)
    short = replace(whole, near=type(whole.near)(*(tensor[:, :6] for tensor in whole.near)))
    rows = torch.arange(0, 60, 2)
    inside = torch.zeros(60, dtype=torch.bool)
    inside[rows] = True
    found, wanted = (one.near_among(Members(rows, inside), 5) for one in (short, whole))
    assert torch.equal(found.indices, wanted.indices)
    assert torch.equal(found.distances, wanted.distances)


def test_the_planted_layer_is_found_and_the_layers_without_it_are_not(finished: FinishedRun) -> None:
    table = finished.results
    assert list(table.columns) == list(COLUMNS)
    findings = pd.read_csv(finished.folder / "findings.csv")
    assert list(findings.columns) == list(FINDING_COLUMNS)
    nearest = findings[findings["finding"].str.startswith("nearest")]
    assert set(nearest["layer_a"]) == set(nearest["layer_b"]) == {1}
    assert nearest["shown"].all()
    assert bool((nearest["lower"] < nearest["value"]).all()) and bool((nearest["value"] < nearest["upper"]).all())
    overlap = table[table["measure"] == "overlap"].set_index("layer_a")
    assert overlap.loc[1, "p"] == 1 / 20
    assert overlap.loc[0, "p"] > 0.05
    assert overlap.loc[0, "control_lower"] <= overlap.loc[0, "value"] <= overlap.loc[0, "control_upper"]
    assert overlap.loc[1, "random_init"] == pytest.approx(overlap.loc[1, "chance"], abs=0.1)
    assert overlap.loc[1, "chance"] == 5 / (N - 1)
    dimensions = table[(table["measure"] == "gride") & (table["side"] == "a") & (table["layer_a"] == 1)]
    assert dimensions["rank"].tolist() == ["1,2", "2,4", "4,8"]
    assert dimensions["chosen"].tolist() == [False, True, False]
    labels = table[table["measure"] == "label_overlap"]
    assert set(labels["target"]) == {"kind"} and (labels["control"] - 0.5).abs().max() < 0.1
    assert table["lower"].notna().all()
    shown = "\n".join(str(cell) for column in finished.summary.columns for cell in column.cells)
    assert "not shown" in shown and "yes" in shown


def test_independent_views_are_shown_at_the_nominal_rate() -> None:
    shown = 0
    for seed in range(50):
        draw = np.random.default_rng(seed)
        shuffles, values = draw.normal(size=(19, 5)), draw.normal(size=5)
        place = best_place("x", values, values + draw.normal(size=(6, 5)), seed=seed)
        shown += judge_nearest(place, shuffles, None, sign=1).p <= 0.05
    assert 0 <= shown <= 7  # at a rate of 5 %, 8 or more of 50 have a probability below 0.4 %


def test_what_the_control_covers_is_not_shown() -> None:
    draws = np.random.default_rng(0).normal(size=(40, 4))
    flat = best_place("x", np.zeros(4), draws, seed=0)
    assert judge_peak(flat, None) == (False, pytest.approx(np.nan, nan_ok=True), "the range holds every layer")
    values = np.array([0.0, 9.0, 0.0, 0.0])
    peak = best_place("x", values, values + draws, seed=0)
    assert (peak.cell, peak.first, peak.last) == (1, 1, 1)
    assert judge_peak(peak, None).shown
    assert judge_peak(peak, peak).reason == "the random model peaks there too"
    assert judge_peak(peak, best_place("x", values[::-1], values[::-1] + draws, seed=0)).shown
    shuffles = np.zeros((19, 4))
    assert judge_nearest(peak, shuffles, None, sign=1).shown
    assert judge_nearest(peak, shuffles + 20, None, sign=1).reason == "shuffled pairs are as near"
    as_near = interval_of("x", 9.0, 9 + draws[:, 0])
    assert judge_nearest(peak, shuffles, as_near, sign=1).reason == "the random model is as near"
    lowest = best_place("x", -values, -values + draws, seed=0, sign=-1)
    assert (lowest.cell, lowest.value) == (1, -9)
    assert judge_nearest(lowest, shuffles, None, sign=-1).shown
    assert not judge_nearest(lowest, shuffles - 20, None, sign=-1).shown


def test_a_place_whose_value_never_varies_has_no_interval() -> None:
    values = np.array([0.0, 1.0, 0.5])
    place = best_place("x", values, np.tile(values, (6, 1)), seed=0)
    assert (place.cell, place.value) == (1, 1.0) and np.isnan([place.lower, place.upper]).all()
    near = interval_of("x", 1.0, 1 + 0.1 * np.random.default_rng(0).normal(size=6))
    assert judge_nearest(place, np.zeros((19, 3)), near, sign=1).reason == "the random model is as near"


def test_the_interval_of_a_mean_from_halves_is_that_of_the_textbook() -> None:
    points = np.random.default_rng(0).normal(size=400)
    draws = np.array([np.random.default_rng(i).permutation(points)[:200].mean() for i in range(300)])
    found = interval_of("x", points.mean(), draws)
    error = points.std(ddof=1) / 20
    assert (found.upper - found.lower) / 2 == pytest.approx(1.97 * error, rel=0.15)  # 300 draws know it to 4 %
    assert np.isnan(interval_of("x", 1.0, np.ones(5))).all()
    assert interval_of("overlap", 0.99, 0.99 + points).upper == 1
    halves_of_ranks = interval_of("imbalance_a_to_b", 0.1, 0.2 + points / 99)
    assert halves_of_ranks.upper == pytest.approx(0.1 + 1.97 * 0.5 * points.std() / 99, rel=0.02), "ranks double"
    assert np.isnan(interval_of("label_overlap", 1 - 2e-16, 1 - 1e-16 * np.arange(5))).all(), "a sum of fractions"
    share = interval_of("label_overlap", 0.99, 0.99 + points / 99)
    assert 1 > share.upper > 0.99 and 0.99 - share.lower > share.upper - 0.99, "a share near 1 has a longer lower side"


def test_the_map_holds_the_curve_on_its_diagonal(finished: FinishedRun) -> None:
    maps = pd.read_parquet(finished.folder / "map.parquet")
    assert list(maps.columns) == list(MAP_COLUMNS)
    assert len(maps) == 3 * 9
    for measure_name, rows in maps[maps["layer_a"] == maps["layer_b"]].groupby("measure"):
        curve = finished.results[finished.results["measure"] == measure_name].set_index("layer_a")["value"]
        np.testing.assert_allclose(rows.set_index("layer_a")["value"], curve, atol=1e-5)
    overlap = maps[(maps["measure"] == "overlap") & (maps["layer_a"] == 1)].set_index("layer_b")
    curve = finished.results[finished.results["measure"] == "overlap"].set_index("layer_a")
    assert overlap.loc[1, "lower"] == pytest.approx(curve.loc[1, "lower"], abs=1e-6)
    assert overlap.loc[1, "control"] == pytest.approx(curve.loc[1, "control"], abs=1e-6)
    assert overlap.loc[0, "value"] < overlap.loc[2, "value"] < overlap.loc[1, "value"]


def test_a_killed_run_goes_on_and_gives_equal_bytes(stored: Path, tmp_path: Path, monkeypatch: Any) -> None:
    whole = run(config(stored, tmp_path / "whole"))
    calls = []

    def kill(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        layer_jobs.write_job(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr("probes.geometry.sweep.run.write_job", kill)
        with pytest.raises(KeyboardInterrupt):
            run_geometry_sweep(config(stored, tmp_path / "cut"))
    (tmp_path / "cut/layers/0-1-1.safetensors").write_bytes(b"cut")
    with monkeypatch.context() as patched:
        patched.setattr("probes.geometry.sweep.run.write_job", lambda *a: calls.append(a) or layer_jobs.write_job(*a))
        run(config(stored, tmp_path / "cut"))
    assert [call[0].job.pair.a for call in calls] == [0, 1, 2, 1, 2]
    for name in ("results.csv", "map.csv", "findings.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (whole.folder / name).read_bytes()
    again = run(config(stored, tmp_path / "cut"))
    pd.testing.assert_frame_equal(again.results, whole.results)
    with pytest.raises(UserError, match="differs: settings.k was 5, is 4"):
        run_geometry_sweep(config(stored, tmp_path / "cut", k=4))
    assert run(config(stored, tmp_path / "cut", k=4, layer_map=False, overwrite=True)).results["k"].isin([1, 4]).any()
    assert not (tmp_path / "cut/map.csv").exists()


def test_a_changed_layer_file_is_named_and_measured_again(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(config(stored, tmp_path / "run"))
    before = {name: (whole.folder / name).read_bytes() for name in ("results.csv", "map.csv", "findings.csv")}
    unfinish(whole.folder)
    flip(whole.folder / "layers/0-1-1.safetensors")
    notes: list[str] = []
    with patch("figures.drawn_figures", return_value=()):
        run_geometry_sweep(config(stored, whole.folder), on_note=notes.append)
    assert "layers/0-1-1.safetensors is damaged or from an earlier version: its layers are measured again" in notes
    assert {name: (whole.folder / name).read_bytes() for name in before} == before
    flip(whole.folder / "findings.csv")
    with pytest.raises(UserError, match=r"findings\.csv must be as it was written"):
        finished_geometry_sweep(whole.folder)
    with patch("figures.drawn_figures", return_value=()):
        run_geometry_sweep(config(stored, whole.folder), on_note=notes.append)
    assert "findings.csv is damaged: the run counts as unfinished" in notes
    tables = {path.name: path.read_bytes() for path in whole.folder.glob("*.*") if path.name != "manifest.json"}
    assert {"findings.csv", "map.csv", "map.parquet", "results.csv", "results.parquet"} <= tables.keys()
    for name in ("findings.csv", "map.csv", "map.parquet", "results.parquet"):
        (whole.folder / name).unlink()
        with patch("figures.drawn_figures", return_value=()):
            run_geometry_sweep(config(stored, whole.folder), on_note=notes.append)
        assert {name: (whole.folder / name).read_bytes() for name in tables} == tables
        assert f"{name} is gone: the run counts as unfinished" in notes


def test_a_layer_file_with_other_halves_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "layers" / "0-1-1.safetensors"
    path.parent.mkdir()
    commit(path, save({"sizes": torch.tensor([60, 60]), "draws overlap": torch.zeros(6)}))  # before half_k was stored
    assert read_job(path, 60, PLAN) is None
    commit(path, save({"sizes": torch.tensor([60, 60, PLAN.half_k, PLAN.half_label_k])}))
    assert read_job(path, 60, PLAN) is not None
    assert read_job(path, 60, replace(PLAN, k=20)) is None


def test_a_high_rank_has_no_interval_and_says_so(stored: Path, tmp_path: Path) -> None:
    assert has_interval(8, N) and not has_interval(16, N)
    found = run(config(stored, tmp_path / "run", rank=(8, 16), largest=16, layer_map=False))
    rows = found.results[found.results["measure"] == "gride"].set_index("rank")
    for rank, text in (("8,16", HIGH_RANK), ("4,8", INTERVAL)):
        own = rows.loc[rank]
        assert (own["lower"].isna() == (text == HIGH_RANK)).all() and set(own["interval"]) == {text}
    findings = pd.read_csv(found.folder / "findings.csv")
    peaks = findings[findings["finding"] == "dimension peaks"]
    assert len(peaks) and peaks["lower"].isna().all() and set(peaks["interval"]) == {HIGH_RANK}
    assert described(float("nan"), float("nan")) == ""


def test_two_layers_at_once_give_the_table_of_one_and_an_error_of_either_ends_the_run(
    stored: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    threads = torch.get_num_threads()
    tables = {}
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            assert layer_jobs.jobs_at_once("cpu") == number and layer_jobs.jobs_at_once("cuda") == 1
            tables[number] = run(config(stored, tmp_path / str(number))).results
            assert torch.get_num_threads() == number
        working = []

        def broken(side: Any, layer: int, *arguments: Any) -> Any:
            working.append(torch.get_num_threads())
            if layer == 1:
                raise UserError("layer 1 is broken.")
            return searched(side, layer, *arguments)

        searched = layer_jobs.searched
        with monkeypatch.context() as patched:
            patched.setattr(layer_jobs, "searched", broken)
            with pytest.raises(UserError, match="layer 1 is broken"):
                run_geometry_sweep(config(stored, tmp_path / "broken"))
        assert set(working) == {1} and torch.get_num_threads() == 2

        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("probes.geometry.sweep.run.write_job", stop)
        with pytest.raises(KeyboardInterrupt) as interrupted:
            run_geometry_sweep(config(stored, tmp_path / "stopped"))
        assert interrupted.tb is not None, "the frames of the run are alive"
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("measure")]
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(threads)
    pd.testing.assert_frame_equal(tables[1], tables[2], rtol=1e-6)


def test_two_runs_are_compared_at_equal_conditions_and_layers_of_equal_depth(stored: Path, tmp_path: Path) -> None:
    before = made_run(tmp_path / "before", made_arrays(5, shared=(0.0, 1.0, 0.3, 0.0, 0.0)), name="before")
    table = run(config(stored, tmp_path / "run", against=before)).results
    maps = pd.read_csv(tmp_path / "run/map.csv")
    assert len(maps) == 2 * 3 * 3 * 5, "the map has the layers that no curve has"
    wanted = neighbourhood_overlap(
        made_arrays()["image"][site(1)]["last"],
        made_arrays(5, shared=(0.0, 1.0, 0.3, 0.0, 0.0))["image"][site(1)]["last"], k=5,
    )  # fmt: skip
    cell = maps[(maps["measure"] == "overlap") & (maps["layer_a"] == 1) & (maps["layer_b"] == 1)].iloc[0]
    assert cell["value"] == pytest.approx(wanted.value)
    assert dict.fromkeys(table["comparison"]) == {"image/last - image/last": None, "caption/last - caption/last": None}
    assert set(table["kind"]) == {"runs"}
    assert set(zip(table["layer_a"], table["layer_b"], strict=True)) == {(0, 0), (1, 2), (2, 4)}
    same = run(config(stored, tmp_path / "same", against=made_run(tmp_path / "copy", made_arrays()))).results
    assert (same.loc[same["measure"] == "overlap", "value"] == 1).all()
    findings = pd.read_csv(tmp_path / "same/findings.csv")
    assert "farthest" in set(findings["finding"])
    control = run(config(stored, tmp_path / "control", against=before, layers="1", random=stored, layer_map=False))
    rows = control.results[control.results["measure"] == "overlap"]
    assert (rows["random_init"] == 1).all(), "with --against, the first run is compared with the random model"


def test_one_example_of_each_group_without_duplicates_and_up_to_the_limit(tmp_path: Path) -> None:
    arrays = made_arrays()
    arrays["caption"][site(2)]["last"][7] = arrays["caption"][site(2)]["last"][3]
    groups = [f"g{max(i, 4)}" for i in range(N)]  # the first five share one
    folder = made_run(tmp_path / "acts", arrays, group=groups)
    settings = config(folder, tmp_path / "run")
    chosen = choose_rows(open_comparisons(settings)[0], settings, least=8)
    assert (chosen.n_grouped, chosen.n_limited, chosen.n_duplicates) == (4, 0, 0)  # row 3 is out with its group
    arrays["caption"][site(2)]["last"][9] = arrays["caption"][site(2)]["last"][7]
    folder = made_run(tmp_path / "more", arrays, group=groups)
    notes: list[str] = []
    with patch("figures.drawn_figures", return_value=()):
        done = run_geometry_sweep(config(folder, tmp_path / "run", limit=40, layer_map=False), on_note=notes.append)
    assert isinstance(done, FinishedRun)
    assert done.results["n"].max() <= 40
    assert any("4 share a group with another, 20 exceed the limit" in note for note in notes)
    settings = config(folder, tmp_path / "run")
    assert choose_rows(open_comparisons(settings)[0], settings, least=8).n_duplicates == 1


def test_tokens_without_pooling_are_averaged_or_sampled(tmp_path: Path) -> None:
    n, each = 40, 3
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(n * each, 6)).astype(np.float32)
    place = pd.DataFrame({"example": np.repeat(range(n), each), "position": 0, "row": -1, "column": -1})
    arrays = {condition: {site(0): {"image": rows}} for condition in ("image", "caption")}
    folder = tmp_path / "acts"
    write_activations(
        folder, arrays, pd.DataFrame({"id": [str(i) for i in range(n)]}),
        token_rows={condition: {"image": place} for condition in arrays}, shard=16,
    )  # fmt: skip
    settings = config(folder, tmp_path / "run", tokens=("image", "sample:image=image"))
    mean, sampled = open_comparisons(settings)
    some = np.array([0, 17, 39])
    np.testing.assert_allclose(mean.a.read(0, some), rows.reshape(n, each, 6).mean(1)[some], atol=1e-6)
    found = sampled.a.read(0, np.arange(n))
    which = (found[:, None] == rows.reshape(n, each, 6)).all(2)
    assert (which.sum(1) == 1).all() and len(set(which.argmax(1))) == each
    assert (sampled.a.label, sampled.b.label) == ("image/sample:image", "caption/image")
    other = replace(sampled.a, seed=4).read(0, np.arange(n))
    assert not np.array_equal(found, other)


def test_the_estimate_writes_nothing_and_options_reach_the_run(stored: Path, tmp_path: Path) -> None:
    found = run_geometry_sweep(config(stored, tmp_path / "run", dry_run=True, layers="0,2"))
    assert isinstance(found, GeometryEstimate)
    assert (found.n_comparisons, found.n_searches, found.n_examples) == (1, 4, N)
    assert "64 examples, 4 searches: about" in str(found) and "measuring" in str(found)
    assert not (tmp_path / "run").exists()


def test_the_command_prints_its_table_and_draws_its_figures(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ["--rank", "2,4", "--k", "5", "--mutual-k", "4", "--largest", "8", "--draws", "4", "--shuffles", "19"]
    main(["--activations", str(stored), "--out", str(out), *options, "--tokens", "last", "--no-map"])
    printed = capsys.readouterr().out
    assert "where dimensions peak" in printed and str(out / "results.csv") in printed
    assert {path.name for path in (out / "figures").glob("[!.]*")} == {"by_layer.png", "by_layer.svg"}
    main(["show", str(out)])
    assert "nearest" in capsys.readouterr().out
    assert json.loads((out / "manifest.json").read_text())["settings"]["rank"] == [2, 4]


def test_figures_and_report_show_the_saved_values(finished: FinishedRun) -> None:
    table = figures.read_run.read_run(finished.folder, "geometry-sweep")  # type: ignore[attr-defined]
    panels = draw_geometry(table)
    titles = [panel.get_title("left") for panel in panels]
    assert titles[0] == f"intrinsic dimension at rank 2,4, n = {N}" and titles[-1] == f"overlap with labels, n = {N}"
    drawn = panels[1].get_lines()[0].get_ydata()
    np.testing.assert_allclose(np.asarray(drawn), table.loc[table["measure"] == "overlap", "value"])
    maps = draw_layer_map(pd.read_csv(finished.folder / "map.csv"))
    assert len(maps) == 3
    rings = [line for line in maps[0].get_lines() if line.get_gid() == "nearest"]
    assert [int(value) for value in (rings[0].get_xdata()[0], rings[0].get_ydata()[0])] == [1, 1]  # type: ignore[index]
    page = figures.build_report([finished.folder]).html
    for text in ("What is found", "Layer against layer: neighbourhood overlap", "shuffled pairs", "random"):
        assert text in page
    with pytest.raises(ValueError, match="got none. Choose another comparison"):
        draw_layer_map(pd.read_csv(finished.folder / "map.csv"), comparison="other")


def broken(name: str, folder: Path) -> GeometryConfig:
    """Settings with one fault."""
    arrays = made_arrays()
    last = arrays["image"][site(1)]["last"]
    options: dict[str, Any] = {}
    if name == "NaN":
        last[5, 3] = np.nan
    elif name == "constant":
        last[:] = 1.0
    elif name == "duplicates":
        last[10:] = last[:1]
    elif name == "few":
        options["k"] = 40
    elif name == "one condition":
        del arrays["caption"]
    elif name == "no common group":
        for of_layer in arrays["caption"].values():
            of_layer["caption"] = of_layer.pop("last")
    elif name == "other data":
        options["against"] = made_run(folder / "b", made_arrays(n=60))
    elif name == "other ids":
        options["against"] = made_run(folder / "b", made_arrays(), id=[f"x{i}" for i in range(N)])
    elif name == "other pictures":
        options["against"] = made_run(folder / "b", made_arrays(), digest="other")
    elif name == "other model":
        options["random"] = made_run(folder / "b", made_arrays(shared=(0.0, 0.0)))
    else:
        options |= {
            "site": {"site": "attn_out"}, "part": {"part": "vision_tower"}, "layer": {"layers": "0-7"},
            "tokens": {"tokens": ("image",)}, "sample": {"tokens": ("sample:last",)}, "target": {"target": ("colour",)},
            "not a run": {"activations": folder / "none"}, "none": {"activations": None},
            "out": {"out": folder / "a"}, "device": {"device": "tpu"},
            "pair": {"against": folder / "a", "tokens": ("last=last",)},
            "other tokens": {"against": folder / "a", "tokens": ("image",)},
        }[name]  # fmt: skip
    made = made_run(folder / "a", arrays)
    return replace(config(made, folder / "run"), **options)


BAD = {
    "NaN": r"image/last activations of made at layer 1 must be finite, got NaN or infinity in row 5",
    "constant": r"at least 14 without duplicates, got 1 of 64; image/last activations of made at layer 1 have 1",
    "duplicates": r"at least 14 without duplicates, got 10 of 64",
    "few": r"at least 84 of different groups for k = 40 and rank 2,4 in halves of them, got 64",
    "one condition": r"must have the conditions image and caption, got no caption",
    "no common group": r"must be stored in both conditions, got no common group of last and caption",
    "other data": r"must hold the examples of activations in the same order, got 60 for 64",
    "other ids": r"must hold the examples of activations in the same order, got other ids",
    "other pictures": r"got other pictures or questions under the same ids",
    "other model": r"random must be a model with the layers of made, got 2 layers for 3",
    "site": r"site must be stored for the blocks of the language model, got 'attn_out'",
    "part": r"for the blocks of the vision tower, got 'resid_post'",
    "layer": r"layer must be in \[0, 3\)",
    "tokens": r"tokens must be a group of condition image .* got 'image'\. It has: last",
    "sample": r"must be captured with --pool none for 'sample:last', got pool 'mean'",
    "target": r"target must be a label of every example, got 'colour'\. The run has: kind",
    "not a run": r"activations must be the folder of a run",
    "none": r"activations must be a run directory, got none",
    "out": r"out must be another folder than activations|out must be empty or contain a run",
    "device": r"device must be cpu, cuda",
    "pair": r"tokens must be one group with --against",
    "other tokens": r"tokens must be stored in both runs, got image",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_before_any_work(name: str, tmp_path: Path) -> None:
    settings = broken(name, tmp_path)
    with pytest.raises(UserError, match=BAD[name]):
        run_geometry_sweep(settings)
    assert not (tmp_path / "run").exists()


OPTIONS: dict[str, Callable[[], GeometryConfig]] = {
    "k must be >= 1, got 0": lambda: GeometryConfig(k=0),
    "rank must be two numbers n1,n2": lambda: GeometryConfig(rank=(4, 4)),
    "shuffles must be >= 19, got 5": lambda: GeometryConfig(shuffles=5),
    "draws must be >= 2": lambda: GeometryConfig(draws=1),
    "largest must be >= 2": lambda: GeometryConfig(largest=1),
    "limit must be >= 8": lambda: GeometryConfig(limit=3),
}


@pytest.mark.parametrize("message", OPTIONS)
def test_bad_options_are_one_sentence(message: str) -> None:
    with pytest.raises(UserError, match=message):
        OPTIONS[message]()
