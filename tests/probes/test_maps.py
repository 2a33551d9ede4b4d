import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from models.capture import capture
from models.inputs import prepare
from models.llava import Llava
from models.sites import Site
from probes.activations.fill import capture_pooled
from probes.activations.store import ActivationStore
from probes.cli import main
from probes.config import RUN, DataOptions, ModelOptions, Probe, ProbeOptions, SiteOptions, SweepConfig, Tokens
from probes.linear.estimators import LogisticProbe
from probes.maps.files import COLUMNS, read_maps
from probes.maps.map_plan import MapPlan, plan_maps
from probes.maps.patch_probes import fit_patch_probes
from probes.maps.write import write_maps
from probes.probe_data import ProbeData, fold_plans
from probes.sweep import run_sweep
from records.manifest import new_manifest, write_manifest
from records.run import FinishedRun
from tasks.errors import UserError
from tasks.example import Example, Target
from tests.conftest import make_examples
from tests.probes.conftest import Outcome

SITES = [
    Site("vision_tower", 1, "resid_post"),
    Site("vision_tower", 1, "z"),
    Site("projector", None, "out"),
    Site("language_model", 1, "resid_post"),
]
KIND = Target("kind")


def chosen(examples: list[Example], *, targets: tuple[Target, ...] = (KIND,), **probing: object) -> MapPlan:
    settings = SweepConfig(probing=ProbeOptions(**probing))  # type: ignore[arg-type]
    return plan_maps(selection_of(examples, targets), settings)


def selection_of(examples: list[Example], targets: tuple[Target, ...] = (KIND,), tokens: str = "image") -> ProbeData:
    return ProbeData("made up", "0", examples, len(examples), None, targets, {t.name: tokens for t in targets})


def filled(llava: Llava, folder: Path, selection: ProbeData, config: SweepConfig) -> ActivationStore:
    store = ActivationStore(folder / "activations", len(selection.examples), len(selection.examples))
    store.write(store.shards[0], capture_pooled(llava, selection.examples, SITES, selection.groups, config))
    write_manifest(folder, new_manifest(RUN, config.settings))
    return store


def table_of(
    llava: Llava, store: ActivationStore, selection: ProbeData, maps: MapPlan, config: SweepConfig
) -> pd.DataFrame:
    folds = fold_plans(selection, config)
    write_maps(llava, store, SITES, [0.0] * len(SITES), selection, folds, maps, config, lambda n: None)
    found = read_maps(config.folder)
    assert found is not None
    return found.table


@pytest.mark.parametrize("tokens", ["image", "object"])
def test_probability_at_a_patch_is_what_the_public_probe_gives_for_its_token(
    llava: Llava, tmp_path: Path, tokens: str
) -> None:
    examples = make_examples(40)
    config = SweepConfig(out=tmp_path, probing=ProbeOptions(maps=3))
    selection = selection_of(examples, tokens=tokens)
    maps = plan_maps(selection, config)
    store = filled(llava, tmp_path, selection, config)
    table = table_of(llava, store, selection, maps, config)
    assert len(table) == len(SITES) * 3 * 16
    labels = np.array([str(example.labels["kind"]) for example in examples])
    plan = fold_plans(selection, config)[tokens].fitted_only()
    spread = 0.0
    for site in SITES:
        x = store.read(site, tokens)
        fitted = fit_patch_probes(x, list(plan.targets.values()), maps.training, plan, "logistic")["kind"]
        assert isinstance(fitted, LogisticProbe)
        public = LogisticProbe(fitted.strength).fit(x[torch.from_numpy(maps.training)], labels[maps.training])
        for index in maps.examples:
            example = examples[index]
            values = capture(llava, prepare(llava, [example]), [site], tokens="image", pool="none")[site][0]
            probability = public.predict_proba(values.flatten(1))
            rows = table[(table["site"] == str(site)) & (table["example"] == example.id)]
            expected = probability[:, list(public.classes_).index(example.labels["kind"])]
            # Both stop near the optimum: their tolerances move a probability by less than a hundredth.
            np.testing.assert_allclose(rows["p_true"], expected, atol=2e-2)
            share = np.array([(labels[maps.training] == name).mean() for name in public.classes_])
            ratio = probability / share  # a label counts by how much likelier it is than among the training examples
            sure = np.sort(ratio, 1)[:, -1] - np.sort(ratio, 1)[:, -2] > 0.2
            assert (rows["predicted"].to_numpy() == public.classes_[ratio.argmax(1)])[sure].all()
            assert rows[["row", "col"]].to_numpy().tolist() == [[r, c] for r in range(4) for c in range(4)]
            spread = max(spread, float(np.ptp(expected)))
    assert spread > 0.1  # the patches differ, so that an order mixed up would be seen


def planted(
    llava: Llava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probe: Probe
) -> tuple[pd.DataFrame, pd.Series]:
    """Map examples whose patch (r, c) shows their own label where r equals c, and the other one elsewhere."""
    examples = [
        Example(**{**vars(example), "labels": {"kind": ("cat", "dog")[i // 5 % 2]}})
        for i, example in enumerate(make_examples(60))
    ]
    config = SweepConfig(out=tmp_path, probing=ProbeOptions(maps=4, probe=probe))
    selection, generator = selection_of(examples), torch.Generator().manual_seed(0)
    sign = torch.tensor([1.0 if example.labels["kind"] == "dog" else -1.0 for example in examples])
    rows = torch.randn(60, 24, generator=generator)
    rows[:, 5] += 4.0 * sign
    store = ActivationStore(tmp_path / "activations", 60, 60)
    store.write(store.shards[0], {SITES[0]: {"image": rows}})
    write_manifest(tmp_path, new_manifest(RUN, config.settings))

    def fake(model: Llava, inputs: object, sites: object, *, examples: list[Example], **options: object) -> object:
        values = torch.randn(1, 16, 24, generator=generator)
        size = 8.0
        own = 1.0 if examples[0].labels["kind"] == "dog" else -1.0
        values[0, :, 5] += torch.where(torch.eye(4).flatten() == 1, size * own, -size * own)
        return {SITES[0]: values}

    monkeypatch.setattr("probes.maps.write.capture", fake)
    maps = plan_maps(selection, config)
    folds = fold_plans(selection, config)
    write_maps(llava, store, SITES[:1], [0.5], selection, folds, maps, config, lambda n: None)
    found = read_maps(tmp_path)
    assert found is not None
    own = found.table["example"].map({example.id: example.labels["kind"] for example in examples})
    return found.table, own


@pytest.mark.parametrize("probe", ["logistic", "mass-mean"])
def test_label_planted_in_some_patches_is_read_there_and_nowhere_else(
    llava: Llava, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probe: Probe
) -> None:
    table, own = planted(llava, tmp_path, monkeypatch, probe)
    there = table["row"] == table["col"]
    assert len(table) == 64
    assert table[there]["p_true"].min() > 0.8
    assert table[~there]["p_true"].max() < 0.2
    assert ((table["predicted"] == own) == there).all()


def test_map_examples_share_no_group_with_what_is_fitted_and_their_rows_do_not_matter(
    llava: Llava, tmp_path: Path
) -> None:
    examples = make_examples(60, n_questions=2)
    config = SweepConfig(out=tmp_path, probing=ProbeOptions(maps=3))
    selection = selection_of(examples)
    maps = plan_maps(selection, config)
    groups = np.array([example.group for example in examples])
    assert len({groups[i] for i in maps.examples}) == 3  # spread over groups
    assert not set(groups[list(maps.examples)]) & set(groups[maps.training])
    assert maps.training.sum() == 60 - 2 * 3  # all others are fitted on
    before = table_of(llava, filled(llava, tmp_path, selection, config), selection, maps, config)
    store = ActivationStore(tmp_path / "activations", 60, 60)
    changed = {site: {"image": store.read(site, "image").clone()} for site in SITES}
    for values in changed.values():
        values["image"][torch.from_numpy(~maps.training)] *= -3.0
    store.write(store.shards[0], changed)
    # Rotating another matrix sums its rows in another order.
    np.testing.assert_allclose(table_of(llava, store, selection, maps, config)["p_true"], before["p_true"], atol=1e-3)
    for values in changed.values():
        values["image"][torch.from_numpy(maps.training)] *= -3.0
    store.write(store.shards[0], changed)
    moved = table_of(llava, store, selection, maps, config)
    assert np.abs(moved["p_true"] - before["p_true"]).max() > 0.05  # the rows that are fitted on do


def test_examples_are_drawn_by_the_seed_and_more_of_them_begin_with_the_same() -> None:
    examples = make_examples(60)
    assert len(chosen(examples).examples) == 12
    assert chosen(examples, maps=4).examples == chosen(examples, maps=9).examples[:4]
    other = plan_maps(selection_of(examples), SweepConfig(seed=1))
    assert other.examples != chosen(examples).examples
    assert len(chosen(make_examples(20)).examples) == 5  # a quarter of the groups
    assert chosen(examples, maps=0).examples == ()


def test_examples_without_which_a_class_is_gone_are_passed_over() -> None:
    examples = make_examples(40)
    rare = range(0, 40, 2)
    examples = [
        Example(**{**vars(example), "labels": {"kind": f"only{i}" if i in rare else "cat"}})
        for i, example in enumerate(examples)
    ]
    plan = chosen(examples, maps=9)
    assert len(plan.examples) == 9
    assert not set(plan.examples) & set(rare)
    assert (plan.targets, plan.notes) == (("kind",), ())


def test_target_that_loses_a_class_is_left_out_with_a_note() -> None:
    both = (KIND, Target("own"))
    examples = [
        Example(**{**vars(example), "labels": {"own": f"own{i}", "kind": ("cat", "dog")[i % 2]}})
        for i, example in enumerate(make_examples(24))
    ]
    plan = chosen(examples, targets=both)
    assert plan.targets == ("kind",)
    assert len(plan.examples) == 6
    assert len(plan.notes) == 1
    assert "no maps of target 'own'" in plan.notes[0]
    alone = chosen(examples, targets=both[1:])
    assert alone.examples == ()
    assert "'own'" in alone.notes[0]


def test_too_few_groups_and_continuous_targets_give_no_maps_and_a_note() -> None:
    few = chosen([Example(**{**vars(example), "group": f"g{i % 3}"}) for i, example in enumerate(make_examples(12))])
    assert few.examples == ()
    assert "too few groups" in few.notes[0]
    numbers = chosen(make_examples(12), targets=(Target("kind", kind="continuous"),))
    assert "every target is continuous" in numbers.notes[0]
    assert "ridge gives no probabilities" in chosen(make_examples(40), probe="ridge").notes[0]


@pytest.mark.parametrize("tokens", ["question", "last", "all"])
def test_text_tokens_give_no_maps_and_a_note(tokens: Tokens) -> None:
    settings = SweepConfig(sites=SiteOptions(tokens=tokens))
    assert repr(tokens) in plan_maps(selection_of(make_examples(40)), settings).notes[0]


def test_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="maps must be at most 20 for 40 groups of examples, got 21"):
        chosen(make_examples(40), maps=21)
    with pytest.raises(UserError, match="maps must be 0 for probe ridge, got 2"):
        chosen(make_examples(40), maps=2, probe="ridge")
    with pytest.raises(UserError, match="maps must be >= 0, got -1"):
        inspect.unwrap(run_sweep)(SweepConfig(probing=ProbeOptions(maps=-1)))


def test_boxes_are_fractions_of_the_square_picture(llava: Llava, tmp_path: Path) -> None:
    """A picture of 40 x 30 is padded to 40 x 40: five rows above, five below."""
    first = make_examples(1)[0]
    examples = [Example(**{**vars(e), "pictures": first.pictures, "boxes": first.boxes}) for e in make_examples(40)]
    config = SweepConfig(out=tmp_path, probing=ProbeOptions(maps=2))
    selection = selection_of(examples)
    table_of(llava, filled(llava, tmp_path, selection, config), selection, plan_maps(selection, config), config)
    found = read_maps(tmp_path)
    assert found is not None
    np.testing.assert_allclose(found.examples[0].boxes["object0"], [2 / 40, 7 / 40, 20 / 40, 25 / 40])
    assert found.examples[0].labels["kind"] in found.examples[0].classes["kind"]
    with Image.open(found.examples[1].picture) as picture:
        assert picture.size == (28, 28)
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert np.ptp(pixels[:2], axis=(0, 1)).max() <= 1  # CLIP's mean colour
    assert np.ptp(pixels[6:22], axis=(0, 1)).min() > 100  # the noise of the picture


def settings(checkpoint: Path, out: Path, **probing: object) -> SweepConfig:
    return SweepConfig(
        model=ModelOptions(name=str(checkpoint)),
        data=DataOptions(limit=40, transfer="none"),
        sites=SiteOptions(specs=("projector:out", "resid_post")),
        probing=ProbeOptions(targets=("colour", "count"), folds=2, controls=False, **probing),  # type: ignore[arg-type]
        out=out,
    )


def maps_of(folder: Path) -> dict[str, bytes]:
    paths = [folder / "maps.parquet", folder / "maps.json", *sorted((folder / "maps").glob("*.png"))]
    return {path.name: path.read_bytes() for path in paths}


def test_maps_are_made_before_the_results_and_kept_by_the_next_start(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(checkpoint, tmp_path / "run")

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("probes.sweep.fit_sites", killed)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(config)
    assert not (config.folder / "results.parquet").exists()
    before = maps_of(config.folder)
    assert {"maps.parquet", "maps.json", "0.png", "9.png"} <= before.keys()  # a quarter of 40 groups
    (config.folder / "maps.parquet").unlink()  # as if killed in the middle of the maps
    with monkeypatch.context() as patch:
        patch.setattr("probes.sweep.fit_sites", killed)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(config)
    assert maps_of(config.folder) == before
    monkeypatch.setattr("probes.sweep.write_maps", killed)  # what is there is not made again
    finished = run_sweep(config)
    assert isinstance(finished, FinishedRun)
    assert maps_of(config.folder) == before
    maps = read_maps(config.folder)
    assert maps is not None
    assert list(maps.table.columns) == list(COLUMNS)
    assert len(maps.table) == 2 * 4 * 10 * 16
    assert not maps.table.duplicated(["target", "site", "example", "row", "col"]).any()
    assert set(maps.table["site"]) == set(finished.results["site"])
    assert maps.table["p_true"].between(0, 1).all()
    assert maps.table[maps.table["part"] == "projector"]["layer"].isna().all()
    assert set(maps.table["example"]) == {example.id for example in maps.examples}


def test_zero_switches_maps_off_and_another_number_is_another_run(checkpoint: Path, tmp_path: Path) -> None:
    config = settings(checkpoint, tmp_path / "run", maps=0)
    run_sweep(config)
    assert read_maps(config.folder) is None
    assert not (config.folder / "maps").exists()
    with pytest.raises(UserError, match="settings.maps was 0, is 2"):
        run_sweep(settings(checkpoint, tmp_path / "run", maps=2))


def test_note_is_printed_and_the_run_goes_through_without_maps(sweep: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = sweep(
        "--limit", 40, "--target", "colour", "--folds", 2, "--no-controls", "--site", "final_norm", "--tokens", "last"
    )
    assert outcome.code == 0, outcome.err
    assert "no maps: tokens 'last'" in outcome.out
    assert read_maps(tmp_path / "run") is None


def test_option_reaches_the_sweep_from_line_and_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[SweepConfig] = []
    monkeypatch.setattr("probes.sweep.run_sweep", lambda config, **options: seen.append(config))
    (tmp_path / "sweep.yaml").write_text("maps: 7\n")
    for arguments in (["--maps", "7"], ["--config", str(tmp_path / "sweep.yaml")]):
        main(arguments)
        assert seen[-1].probing.maps == 7
    assert SweepConfig().settings["maps"] is None


def test_command_writes_maps_as_a_process_and_refuses_too_many(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--model", str(checkpoint), "--limit", "30", "--transfer", "none", "--target", "colour", "--folds", "2",
        "--no-controls", "--site", "projector:out", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--maps", "16"])
    assert end.value.code == 2
    refused = capsys.readouterr().err
    assert refused.startswith("probe-sweep: maps must be at most 15 for 30 groups of examples, got 16.")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "probes.cli", *arguments, "--maps", "3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    entries = json.loads((tmp_path / "run/maps.json").read_text())
    assert [entry["k"] for entry in entries] == [0, 1, 2]
    assert {"example", "question", "answer", "labels", "boxes", "focus", "classes"} <= entries[0].keys()
    assert len(pd.read_parquet(tmp_path / "run/maps.parquet")) == 3 * 16
    assert len(list((tmp_path / "run/maps").glob("*.png"))) == 3
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["settings"]["maps"] == 3


def test_reading_refuses_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run must be a folder that probe-sweep wrote"):
        read_maps(tmp_path)
