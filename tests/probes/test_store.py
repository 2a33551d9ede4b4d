import errno
import os
from pathlib import Path

import pytest
import torch

from models.sites import Site
from probes.activations.store import ActivationStore, estimate_size, plan_shards
from records.run import RESERVE, check_space
from tasks.checksums import LEDGER
from tasks.errors import UserError

SITES = [Site("language_model", 0, "resid_post"), Site("projector", None, "out")]


def filled(root: Path, n: int = 10, size: int = 4, dtype: torch.dtype = torch.float32) -> ActivationStore:
    store = ActivationStore(root, n, size)
    for shard in store.shards:
        rows = torch.arange(shard.start, shard.stop)[:, None].expand(-1, 3).to(dtype)
        store.write(shard, {site: {"image": rows, "object": -rows} for site in SITES})
    return store


def test_shards_cover_every_example_once_and_only_the_last_is_short() -> None:
    shards = plan_shards(10, 4)
    assert [i for shard in shards for i in range(shard.start, shard.stop)] == list(range(10))
    assert [len(shard) for shard in shards] == [4, 4, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_written_is_read_in_order_in_its_own_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    found = filled(tmp_path, dtype=dtype).read(SITES[0], "object")
    assert found.dtype == dtype
    assert found[:, 0].tolist() == [-i for i in range(10)]


def test_only_shards_that_are_not_whole_are_missing(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert store.missing(SITES, ["image", "object"]) == []
    assert len(store.missing(SITES, ["last"])) == 3  # another token group was never captured
    store.path(SITES[1], store.shards[1]).unlink()
    path = store.path(SITES[0], store.shards[2])
    path.write_bytes(path.read_bytes()[:-5])
    assert [shard.index for shard in store.missing(SITES, ["image"])] == [1, 2]


def test_every_shard_has_exactly_one_owner(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, 23, 4)
    owned = [shard.index for rank in range(3) for shard in store.missing(SITES, ["image"], rank=rank, world=3)]
    assert sorted(owned) == [shard.index for shard in store.shards]


def test_full_disk_in_mid_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="room on the disk, got No space left on device"):
        filled(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != LEDGER] == []


def test_truncated_shard_is_refused_by_name_when_read(tmp_path: Path) -> None:
    store = filled(tmp_path)
    path = store.path(SITES[0], store.shards[0])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"00000\.safetensors must be as it was written.*captured anew"):
        store.read(SITES[0], "image")
    (path.parent / LEDGER).unlink()  # as in a run of an earlier version
    with pytest.raises(UserError, match="must be a complete safetensors file.*00000.safetensors"):
        store.read(SITES[0], "image")


def test_a_changed_byte_and_a_shard_in_the_place_of_another_count_as_missing(tmp_path: Path) -> None:
    store = filled(tmp_path)
    path, other = store.path(SITES[0], store.shards[0]), store.path(SITES[1], store.shards[1])
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    other.write_bytes(store.path(SITES[1], store.shards[0]).read_bytes())
    missing = store.missing(SITES, ["image"])
    assert [shard.index for shard in missing] == [0, 1]
    assert store.damaged(SITES, missing) == [path, other]


def test_rows_that_do_not_match_the_shard_are_refused(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, 4, 4)
    with pytest.raises(ValueError, match="rows must be 4 x d for shard 0 .* got \\(3, 2\\)"):
        store.write(store.shards[0], {SITES[0]: {"image": torch.zeros(3, 2)}})


def test_size_estimate_counts_every_value_once(tmp_path: Path) -> None:
    store = filled(tmp_path, n=4000, size=1000)
    estimate = estimate_size(
        dict.fromkeys(SITES, 3), n_rows=4000, n_groups=2, dtype=torch.float32, folder=tmp_path / "new"
    )
    written = sum(store.path(site, shard).stat().st_size for site in SITES for shard in store.shards)
    assert 0.98 * written < estimate.activations < 1.05 * written
    assert estimate.present == 0


def test_what_a_killed_run_has_stored_needs_no_more_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path / "activations", n=400, size=100)
    written = sum(store.path(site, shard).stat().st_size for site in SITES for shard in store.shards)
    estimate = estimate_size(dict.fromkeys(SITES, 3), n_rows=400, n_groups=2, dtype=torch.float32, folder=tmp_path)
    assert estimate.present == written
    monkeypatch.setattr("records.run.free_bytes", lambda folder: RESERVE + estimate.activations - written)
    check_space(estimate.missing, tmp_path, what="activations", advice="")
    with pytest.raises(UserError, match="activations must fit on the disk"):
        check_space(estimate.activations, tmp_path, what="activations", advice="")
