"""The attention that a knockout of single heads saves: transformers' own, bounded, whole or an error."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from figures.attention.saved import edge_effects, read_attention
from figures.read_run import RunError
from interventions.attention import plan_attention, read_edges, write_attention
from interventions.config import InterventionOptions, PairOptions, PatchConfig
from interventions.pairs import load_pairs
from interventions.plan.options import Corruption
from interventions.sweep import run_patch_sweep
from models.inputs import prepare
from models.llava import Llava
from models.loading.load import load
from records.options import ModelOptions
from tasks.errors import UserError
from tests.conftest import tiny_config

FLOWS = ("image->last", "object->question")


class Saved(NamedTuple):
    folder: Path
    config: PatchConfig


@pytest.fixture(scope="module")
def saved(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A knockout of every head in two layers, with the attention of two of three pairs."""
    folder = tmp_path_factory.mktemp("attention") / "run"
    knockout = InterventionOptions("knockout", tokens=FLOWS, heads="all", window="1", layers="0,2", attention=2)
    config = PatchConfig(knockout, ModelOptions(str(checkpoint)), PairOptions(limit=3), batch_size=3, out=folder)
    assert run_patch_sweep(config) is not None
    return Saved(folder, config)


def test_saved_attention_is_that_of_transformers(saved: Saved, checkpoint: Path) -> None:
    eager = load(str(checkpoint), attn="eager", validate=False)
    pairs = load_pairs(PairOptions(limit=3), seed=0, size=eager.image_size).pairs
    about = json.loads((saved.folder / "attention.json").read_text())
    found = read_attention(saved.folder)
    assert [one.id for one in found] == [pair.id for pair in pairs[:2]]
    for one, entry in zip(found, about["pairs"], strict=True):
        inputs = prepare(eager, [pairs[one.k].clean], answers=True)
        with torch.inference_mode():
            of = eager.model(**inputs.model_kwargs(), output_attentions=True).attentions
        span = inputs.layout[0].images[0]
        assert one.heads == tuple(map(str, range(eager.n_heads))) and one.layers == (0, 2)
        for number, layer in enumerate(one.layers):
            expected = of[layer][0][:, list(one.positions), span.start : span.stop]
            # the same softmax in float32; sdpa and eager differ in the order of the sums
            np.testing.assert_allclose(one.values[number], expected.numpy(), rtol=0, atol=1e-5)
        ids = inputs.input_ids[0][list(one.positions)].tolist()
        assert list(one.words) == [eager.tokenizer.decode([n]) for n in ids]
        assert entry["flows"][0]["patches"] is None and 0 < len(one.flows[1].patches) < 16
        last = one.positions[one.flows[0].positions[0]]
        assert last == inputs.layout[0].prompt_stop - 1
        assert len(one.flows[0].positions) == 1  # without the answer's tokens, whose edges are cut too
        assert len(one.flows[1].positions) == inputs.layout[0].question.stop - inputs.layout[0].question.start  # type: ignore[union-attr]


def test_the_effect_beside_the_attention_is_that_of_the_same_pair_layer_and_head(saved: Saved) -> None:
    values = pd.read_parquet(saved.folder / "values.parquet").assign(unchanged="clean")
    one = read_attention(saved.folder)[1]
    effects = edge_effects(values, one, "object->question")
    cell = effects[(effects["layer"] == 2) & (effects["head"] == "3") & (effects["metric"] == "logit_difference")]
    row = values[(values["id"] == one.id) & (values["layer"] == 2) & (values["head"] == "3")]
    row = row[(row["tokens"] == "object->question") & (row["metric"] == "logit_difference")]
    assert len(cell) == len(row) == 1
    between = float(row["clean"].iloc[0] - row["corrupt"].iloc[0])
    assert float(cell["effect"].iloc[0]) == pytest.approx(float(row["clean"].iloc[0] - row["value"].iloc[0]) / between)
    assert len(effects) == 2 * 6 * 2


def test_a_finished_run_has_pictures_figures_and_checksums_of_its_attention(saved: Saved) -> None:
    names = {path.name for path in (saved.folder / "figures").glob("*.png")}
    assert {"head_map.png", "attention_0.png", "attention_1.png", "attention_0_2.png"} <= names
    assert sorted(path.name for path in (saved.folder / "pictures").glob("*.png")) == ["0.png", "1.png"]
    ledger = (saved.folder / ".checksums").read_text()
    assert "attention.safetensors" in ledger and "attention.json" in ledger


def test_changed_files_of_attention_are_refused_and_made_anew(saved: Saved) -> None:
    path = saved.folder / "attention.safetensors"
    before = path.read_bytes()
    path.write_bytes(before[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match="attention.safetensors must be as it was written"):
        read_attention(saved.folder)
    assert run_patch_sweep(saved.config) is not None
    assert path.read_bytes() == before
    text = saved.folder / "attention.json"
    about = json.loads(text.read_text())
    about["pairs"][0]["flows"][0]["positions"] = [999]
    (saved.folder / ".checksums").unlink()
    text.write_text(json.dumps(about))
    with pytest.raises(RunError, match="edges must lie inside the prompt"):
        read_attention(saved.folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (InterventionOptions("patch", attention=2), "attention must go with op knockout and heads, got op 'patch'"),
        (InterventionOptions("knockout", tokens=("image->last",), attention=2), "got op 'knockout' with heads None"),
        (InterventionOptions("knockout", tokens=("image->last",), heads="0", attention=-1), "attention must be >= 0"),
    ],
)
def test_attention_belongs_to_knockouts_of_heads(options: InterventionOptions, message: str) -> None:
    with pytest.raises(UserError, match=message):
        options.plan(Corruption())


def test_attention_is_bounded_and_a_set_of_heads_has_their_mean(
    llava: Llava, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = InterventionOptions("knockout", tokens=("image->last",), heads="0,3,0+3")
    specs = options.plan(Corruption()).cells(llava)
    pairs = load_pairs(PairOptions(limit=4), seed=0, size=llava.image_size).pairs
    plan = plan_attention(llava, specs, pairs, wanted=2)
    assert plan is not None
    write_attention(llava, plan, tmp_path)
    values = load_file(tmp_path / "attention.safetensors")
    assert sum(one.nbytes for one in values.values()) == plan.n_bytes
    np.testing.assert_allclose(values["1"][:, 2], (values["1"][:, 0] + values["1"][:, 1]) / 2, atol=1e-7)
    monkeypatch.setattr("interventions.attention.MOST_BYTES", plan.n_bytes - 1)
    fewer = plan_attention(llava, specs, pairs, wanted=None)
    assert fewer is not None and len(fewer.pairs) == 1
    with pytest.raises(UserError, match="attention must fit into 0 MB"):
        plan_attention(llava, specs, pairs, wanted=3)
    assert plan_attention(llava, specs, pairs, wanted=0) is None
    only_text = InterventionOptions("knockout", tokens=("question->last",), heads="0").plan(Corruption())
    assert plan_attention(llava, only_text.cells(llava), pairs, wanted=None) is None  # no cut edge reads a patch
    with pytest.raises(UserError, match="attention needs cut edges that read patches"):
        plan_attention(llava, only_text.cells(llava), pairs, wanted=2)


def test_attention_of_a_model_without_grouped_queries_is_that_of_transformers(llava_plain: Llava) -> None:
    eager = load(tiny_config(grouped=False), seed=1, attn="eager", validate=False)
    specs = InterventionOptions("knockout", tokens=("image->text-question",), heads="all").plan(Corruption())
    pairs = load_pairs(PairOptions(limit=1), seed=0, size=28).pairs
    plan = plan_attention(llava_plain, specs.cells(llava_plain), pairs, wanted=1)
    assert plan is not None
    inputs = plan.pairs[0].inputs
    with torch.inference_mode():
        of = torch.stack(eager.model(**inputs.model_kwargs(), output_attentions=True).attentions)[:, 0]
    span = inputs.layout[0].images[0]
    expected = of[:, :, list(plan.pairs[0].positions), span.start : span.stop]
    torch.testing.assert_close(read_edges(llava_plain, plan, plan.pairs[0]), expected, rtol=0, atol=1e-5)
