import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import torch

import probes.fit_sites
from models.sites import Site
from probes.activations.store import ActivationStore
from probes.config import ProbeOptions, SweepConfig
from probes.evaluation.folds import FoldPlan, plan_folds
from probes.evaluation.parallel import each_site, processes_for
from probes.fit_sites import fit_sites
from probes.probe_data import ProbeData, fold_plans
from tasks.errors import UserError
from tasks.example import Target
from tests.conftest import make_examples

SITES = [Site("language_model", layer, "resid_post") for layer in range(9)]


def whereabouts(site: Site, *, harm: str = "") -> tuple[int | None, int, int]:
    if site.layer == 4 and harm == "refuse":
        raise UserError("activations must be finite, got a NaN.")
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
    layers, threads, processes = zip(*each_site(whereabouts, SITES, processes=2), strict=True)
    assert layers == tuple(range(9))
    assert set(threads) == {1}
    assert torch.get_num_threads() == 2
    assert os.getpid() not in processes


def test_refusals_of_a_process_are_refusals_here_and_a_killed_one_is_told() -> None:
    with pytest.raises(UserError, match="must be finite"):
        list(each_site(partial(whereabouts, harm="refuse"), SITES, processes=2))
    with pytest.raises(UserError, match="OMP_NUM_THREADS=1"):
        list(each_site(partial(whereabouts, harm="kill"), SITES, processes=2))


def test_side_by_side_gives_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n, generator = 40, torch.Generator().manual_seed(0)
    store = ActivationStore(tmp_path, n, n)
    store.write(store.shards[0], {site: {"image": torch.randn(n, 12, generator=generator)} for site in SITES})
    selection = ProbeData("made", "0", make_examples(n), n, None, (Target("kind"),), {"kind": "image"})
    config = SweepConfig(probing=ProbeOptions(targets=("kind",), folds=2, controls=False))

    def table(processes: int) -> tuple[pd.DataFrame, list[int]]:
        monkeypatch.setattr(probes.fit_sites, "processes_for", lambda *_: processes)
        told: list[int] = []
        plans = fold_plans(selection, config)
        return fit_sites(store, None, SITES, [0.0] * len(SITES), selection, plans, config, told.append).table, told

    one, two = table(1), table(2)
    pd.testing.assert_frame_equal(one[0], two[0], check_exact=True)
    assert one[1] == two[1] == [1] * len(SITES)


def plan(n: int) -> FoldPlan:
    return plan_folds({"label": [i % 4 for i in range(n)]}, list(range(n)), n_permutations=2)


def test_small_fits_get_processes_and_large_ones_all_threads(
    two_threads: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert processes_for(plan(200), 576, 41, "cpu") == 2
    assert processes_for(plan(200), 576, 7, "cpu") == 1  # starting them would cost more than they save
    assert processes_for(plan(200), 576, 41, "cuda:0") == 0
    assert processes_for(plan(200), 20_000, 41, "cpu") == 0
    torch.set_num_threads(1)
    assert processes_for(plan(200), 576, 41, "cpu") == 1
    torch.set_num_threads(2)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**9))
    assert processes_for(plan(200), 576, 41, "cpu") == 1


def test_one_process_is_this_one_with_one_thread(two_threads: object) -> None:
    assert {found[1:] for found in each_site(whereabouts, SITES, processes=1)} == {(1, os.getpid())}
    assert {found[1:] for found in each_site(whereabouts, SITES, processes=0)} == {(2, os.getpid())}
    assert torch.get_num_threads() == 2


PARENT = """
import os, sys
from functools import partial
from probes.evaluation.parallel import each_site
from tests.probes.test_parallel import SITES, wait_with
work = partial(wait_with, ballast=bytes(3_000_000), folder=sys.argv[1])
list(each_site(work, SITES, processes=2))
"""


def wait_with(site: Site, *, ballast: bytes, folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    if site.layer:
        time.sleep(0.2)


def test_processes_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], cwd=Path(__file__).parents[2])
    for _ in range(600):
        if len(started := list(tmp_path.iterdir())) == 2:
            break
        assert parent.poll() is None
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    workers = [int(path.name) for path in started]
    assert len(workers) == 2
    for _ in range(100):
        if not any(psutil.pid_exists(pid) for pid in workers):
            return
        time.sleep(0.1)
    raise AssertionError(f"still there: {[pid for pid in workers if psutil.pid_exists(pid)]}")
