import os
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import probes.fitting
from models.sites import Site
from probes.config import ProbeOptions, SweepConfig
from probes.fitting import fit_sites
from probes.folds import Plan, plan_folds
from probes.parallel import each_site, sites_at_once
from probes.selection import Selection
from probes.store import ActivationStore
from records.errors import BadInput
from tasks.example import Target
from tests.conftest import make_examples

SITES = [Site("language_model", layer, "resid_post") for layer in range(9)]


def whereabouts(site: Site, *, harm: str = "") -> tuple[int | None, int, int]:
    if site.layer == 4 and harm == "refuse":
        raise BadInput("activations must be finite, got a NaN.")
    if site.layer == 4 and harm == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return site.layer, torch.get_num_threads(), os.getpid()


@pytest.fixture
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_sites_come_back_in_order_from_processes_of_one_thread(two_threads: object) -> None:
    layers, threads, processes = zip(*each_site(whereabouts, SITES, at_once=2), strict=True)
    assert layers == tuple(range(9))
    assert set(threads) == {1}
    assert torch.get_num_threads() == 2
    assert os.getpid() not in processes
    assert {pid for _, _, pid in each_site(whereabouts, SITES, at_once=1)} == {os.getpid()}


def test_refusals_of_a_process_are_refusals_here_and_a_killed_one_is_told() -> None:
    with pytest.raises(BadInput, match="must be finite"):
        list(each_site(partial(whereabouts, harm="refuse"), SITES, at_once=2))
    with pytest.raises(BadInput, match="OMP_NUM_THREADS=1"):
        list(each_site(partial(whereabouts, harm="kill"), SITES, at_once=2))


def test_side_by_side_gives_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n, generator = 40, torch.Generator().manual_seed(0)
    store = ActivationStore(tmp_path, n, n)
    store.write(store.shards[0], {site: {"image": torch.randn(n, 12, generator=generator)} for site in SITES})
    selection = Selection("made", "0", make_examples(n), n, None, (Target("kind"),), {"kind": "image"})
    config = SweepConfig(probing=ProbeOptions(targets=("kind",), folds=2, controls=False))

    def table(at_once: int) -> tuple[pd.DataFrame, list[int]]:
        monkeypatch.setattr(probes.fitting, "sites_at_once", lambda *_: at_once)
        told: list[int] = []
        return fit_sites(store, None, SITES, [0.0] * len(SITES), selection, config, told.append), told

    one, two = table(1), table(2)
    pd.testing.assert_frame_equal(one[0], two[0], check_exact=True)
    assert one[1] == two[1] == [1] * len(SITES)


def plan(n: int) -> Plan:
    return plan_folds({"label": [i % 4 for i in range(n)]}, list(range(n)), n_resamples=2)


def test_sites_are_fitted_side_by_side_where_they_are_small_and_many(
    two_threads: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sites_at_once(plan(200), 576, 41, "cpu") == 2
    assert sites_at_once(plan(200), 576, 7, "cpu") == 1  # processes would cost more than they save
    assert sites_at_once(plan(200), 576, 41, "cuda") == 1
    assert sites_at_once(plan(400), 100_000, 41, "cpu") == 1  # one site fills the batch
    torch.set_num_threads(1)
    assert sites_at_once(plan(200), 576, 41, "cpu") == 1
    torch.set_num_threads(2)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**9))
    assert sites_at_once(plan(200), 576, 41, "cpu") == 1
