"""Every option of ``patch-sweep`` does something: the run that sets it, beside the same run without it.

``test_cli`` shows that each option arrives; here is what it does to the table. A case names the columns that must
differ, and those that must stay.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.loading.load import load
from tests.interventions.conftest import Outcome, PairFile
from tests.interventions.test_cli import EVERY_OPTION, FLAGS, REPEATED

Sweep = Callable[..., Outcome]
BASE = ("--limit", "2", "--layers", "1", "--metric", "logit_difference")
STEER = ("--op", "steer", "--steer-file", "{directions}", "--steer-name", "up", "--tokens", "last")
MOVE = ("--op", "transplant", "--donor", "{tuned}")


class Case(NamedTuple):
    """What an option does.

    Args:
        base: The line without it.
        option: What is added.
        differ: Columns of the table that differ in every row.
        stay: Columns that do not.
    """

    base: Sequence[str]
    option: Sequence[str]
    differ: Sequence[str]
    stay: Sequence[str] = ()


CASES: dict[str, Case] = {
    "pair": Case((), ("--pair", "place"), ("clean", "corrupt")),
    "split": Case((), ("--split", "train"), ("clean", "corrupt")),
    "seed": Case((), ("--seed", "3"), ("clean", "corrupt")),
    "corruption": Case((), ("--corruption", "blank"), ("corrupt",), ("clean",)),
    "noise-scale": Case(("--corruption", "noise"), ("--noise-scale", "0.5"), ("corrupt",), ("clean",)),
    "noise-seed": Case(("--corruption", "noise"), ("--noise-seed", "1"), ("corrupt",), ("clean",)),
    "op": Case((), ("--op", "ablate", "--site", "resid_pre"), ("value",), ("clean", "corrupt", "site")),
    "site": Case((), ("--site", "mlp_out"), ("value",), ("clean", "corrupt", "unchanged")),
    "window": Case(("--site", "mlp_out"), ("--window", "3"), ("value", "window"), ("clean", "corrupt", "layer")),
    "tokens": Case(("--tokens", "image"), ("--tokens", "object"), ("value",), ("clean", "corrupt")),
    "heads": Case(("--site", "z"), ("--heads", "0+2"), ("value", "head"), ("clean", "corrupt", "tokens")),
    "from": Case(
        ("--op", "knockout", "--from", "image", "--to", "last"), ("--from", "question"), ("value", "tokens"), ("clean",)
    ),
    "to": Case(
        ("--op", "knockout", "--from", "image", "--to", "last"), ("--to", "question"), ("value", "tokens"), ("clean",)
    ),
    "direction": Case(("--site", "mlp_out"), ("--direction", "noise"), ("value", "unchanged"), ("clean", "corrupt")),
    "ablation": Case(("--op", "ablate"), ("--ablation", "zero"), ("value",), ("clean", "corrupt")),
    "hidden": Case(("--op", "skip"), ("--hidden",), ("value",), ("clean", "corrupt")),
    "steer-file": Case(STEER, ("--steer-file", "{others}"), ("value",), ("clean", "corrupt")),
    "steer-name": Case(STEER, ("--steer-name", "down"), ("value",), ("clean", "corrupt")),
    "alpha": Case(STEER, ("--alpha", "-1"), ("value",), ("clean", "corrupt")),
    "unit": Case(STEER, ("--unit", "absolute"), ("value",), ("clean", "corrupt")),
    "donor": Case(MOVE, ("--donor", "{projected}"), ("value", "clean"), ("corrupt",)),
    "with-head": Case(MOVE, ("--with-head",), ("value",), ("clean", "corrupt")),
    "with-projector": Case(
        ("--op", "transplant", "--donor", "{projected}"), ("--with-projector",), ("value",), ("clean", "corrupt")
    ),
    "metric": Case((), ("--metric", "kl"), ("metric",)),
    "dtype": Case((), ("--dtype", "bfloat16"), ("clean", "corrupt"), ("site", "tokens")),
    "limit": Case((), ("--limit", "3"), ("n", "clean", "corrupt")),
    "layers": Case((), ("--layers", "0"), ("layer", "window", "site"), ("clean", "corrupt")),
}
# These have a test of their own: below, or in the file named.
ELSEWHERE = {
    "model", "revision", "device", "attn", "preprocess", "engine", "batch-size",  # below
    "quantize", "device-map",  # tests/gpu/test_little_memory
    "attention", "new-tokens",  # operations/test_attention, test_captions
    "capital-answers",  # test_benchmark_pairs
    "data", "images", "overwrite", "dry-run", "out",  # test_cli, test_pairs
}  # fmt: skip


def test_no_option_is_forgotten() -> None:
    assert set(CASES) | ELSEWHERE == {*EVERY_OPTION, *FLAGS, *REPEATED, "from", "to"}


@pytest.fixture
def places(tmp_path: Path, tuned: Path, checkpoint: Path) -> dict[str, str]:
    """Files that lines speak of."""
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(2, 48, generator=generator)
    save_file({"up": up, "down": down}, tmp_path / "directions.safetensors")
    save_file({"up": down, "down": up}, tmp_path / "others.safetensors")
    projected = tmp_path / "projected"
    projected.mkdir()
    for file in checkpoint.iterdir():
        (projected / file.name).write_bytes(file.read_bytes())
    weights = load_file(projected / "model.safetensors")
    for key in weights:
        if "projector" in key or "layers.1.mlp" in key:
            weights[key] = weights[key] * 1.5
    save_file(weights, projected / "model.safetensors", metadata={"format": "pt"})
    return {
        "directions": str(tmp_path / "directions.safetensors"), "others": str(tmp_path / "others.safetensors"),
        "tuned": str(tuned), "projected": str(projected),
    }  # fmt: skip


@pytest.fixture
def table(sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pd.DataFrame]:
    """The results of a line, without its figures, which take longer than the run."""
    monkeypatch.setattr("figures.drawn_figures", lambda folder, **_: ())
    made = iter(range(99))

    def run(*arguments: str, **options: Any) -> pd.DataFrame:
        out = tmp_path / f"run{next(made)}"
        outcome = sweep(*arguments, "--out", out, **options)
        assert outcome.code == 0, outcome.err
        return pd.read_csv(out / "results.csv")

    return run


@pytest.mark.parametrize("option", CASES)
def test_option_changes_the_table(option: str, table: Callable[..., pd.DataFrame], places: dict[str, str]) -> None:
    case = CASES[option]
    base = [*BASE, *(part.format(**places) for part in case.base)]
    changed = [part.format(**places) for part in case.option]
    if option in ("metric", "from", "to", "tokens", "steer-name", "steer-file", "donor", "limit", "layers"):
        base_changed = _without(base, changed[0]) + changed  # it replaces a value that the base line gives
    else:
        base_changed = base + changed
    before, after = table(*base), table(*base_changed)
    n = min(len(before), len(after))
    for column in case.differ:
        a, b = before[column].head(n), after[column].head(n)
        if pd.api.types.is_float_dtype(a) and pd.api.types.is_float_dtype(b) and a.notna().all() and b.notna().all():
            assert (abs(a - b) > 1e-5).any(), f"{column} stays {a.tolist()}"
        else:
            assert (a.astype(str) != b.astype(str)).all(), f"{column} stays {a.tolist()}"
    for column in case.stay:
        a, b = before[column].head(n), after[column].head(n)
        if pd.api.types.is_float_dtype(a):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        else:
            assert a.tolist() == b.tolist()


def _without(line: list[str], option: str) -> list[str]:
    """The line without an option and its value."""
    places = {at for i, part in enumerate(line) if part == option for at in (i, i + 1)}
    return [part for i, part in enumerate(line) if i not in places]


def test_noise_of_a_larger_scale_corrupts_more(table: Callable[..., pd.DataFrame]) -> None:
    distances = []
    for scale in ("0.1", "3"):
        found = table(*BASE, "--corruption", "noise", "--noise-scale", scale, "--metric", "kl").query("metric == 'kl'")
        distances.append(found["corrupt"].iloc[0])
    assert 0 < distances[0] < 0.1 * distances[1]


def test_model_is_the_one_that_is_loaded(table: Callable[..., pd.DataFrame], tuned: Path) -> None:
    before, after = table(*BASE), table(*BASE, model=tuned)
    assert (abs(before["clean"] - after["clean"]) > 1e-3).all()
    assert set(after["model"]) == {str(tuned)}


def test_preprocess_says_what_of_an_oblong_picture_is_seen(
    table: Callable[..., pd.DataFrame], pair_file: PairFile
) -> None:
    line = ["--data", str(pair_file.table), "--tokens", "image", *BASE]
    padded, cropped = table(*line), table(*line, "--preprocess", "hf")
    assert (abs(padded["clean"] - cropped["clean"]) > 1e-4).all()


def test_revision_device_attention_and_dtype_reach_the_model(
    table: Callable[..., pd.DataFrame], tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    def note(name: str, **options: Any) -> Any:
        seen.append((name, options))
        return load(name, **{**options, "revision": None})

    monkeypatch.setattr("records.open_model.load", note)
    line = ["--revision", "abc", "--attn", "eager", "--device", "cpu", "--dtype", "float32"]
    moved = table(*BASE, "--op", "transplant", "--donor", str(tuned), *line)
    (_, mine), (donor, theirs) = seen
    assert (mine["revision"], mine["attn"], mine["device"], mine["dtype"]) == ("abc", "eager", "cpu", torch.float32)
    assert (donor, theirs["revision"], theirs["attn"]) == (str(tuned), None, "eager")  # a revision is the model's own
    plain = table(*BASE, "--op", "transplant", "--donor", str(tuned))
    np.testing.assert_allclose(plain["value"], moved["value"], atol=1e-5)  # attention by other kernels, equal numbers


def test_engine_chooses_how_cells_are_run(table: Callable[..., pd.DataFrame], monkeypatch: pytest.MonkeyPatch) -> None:
    from interventions.engines import engine

    ran: list[str] = []

    def noting(name: str) -> Callable[..., Any]:
        real = getattr(engine, name)

        def run(*arguments: Any) -> Any:
            ran.append(name)
            return real(*arguments)

        return run

    for name in ("run_full", "run_incremental"):
        monkeypatch.setattr(engine, name, noting(name))
    found = {name: table(*BASE, "--engine", name) for name in ("incremental", "full")}
    assert ran == ["run_incremental", "run_full"]
    np.testing.assert_allclose(found["full"]["value"], found["incremental"]["value"], atol=1e-5)


def test_batch_size_is_the_number_of_pairs_in_a_file(sweep: Sweep, tmp_path: Path) -> None:
    for size, n_files in (("1", 3), ("2", 2)):
        out = tmp_path / size
        assert sweep(*BASE, "--limit", "3", "--batch-size", size, "--out", out).code == 0
        assert len(list((out / "cells").glob("*.safetensors"))) == n_files
