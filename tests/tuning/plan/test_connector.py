"""LLaVA's linear connector and LLaVA-1.5's MLP: fresh, trained as such, and open in plain transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from models.llava import Llava
from models.loading.load import load
from tests.tuning.conftest import samples_of
from tuning.cli import main
from tuning.data.prompt_format import PromptFormat
from tuning.data.scene_mix import FIRST_CAPTION_SCENE, SceneMix
from tuning.plan.connector import is_linear, with_connector
from tuning.plan.plan import LayerPlan
from tuning.plan.resolve import resolve
from tuning.scoring.answers import score_answers


def first_map(llava: Llava) -> Tensor:
    """The weights of the connector's first map."""
    projector: Any = llava.projector
    weight: Tensor = projector.linear_1.weight
    return weight.detach()


def additive(llava: Llava) -> bool:
    """Whether the connector is one affine map: f(a + b) + f(0) = f(a) + f(b)."""
    a, b = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, nothing, one, other = (llava.projector(x) for x in (a + b, torch.zeros_like(a), a, b))
    return torch.allclose(whole + nothing, one + other, atol=1e-4)


def test_a_linear_connector_is_one_linear_map_and_an_mlp_is_not(fresh: Llava) -> None:
    assert not additive(fresh)
    linear = with_connector(fresh, "linear", seed=0)
    assert additive(linear)
    assert is_linear(linear)
    first = first_map(linear).clone()
    assert linear.weight_hash == f"{fresh.weight_hash}-linear@0"
    mlp = with_connector(linear, "mlp", seed=1)
    assert not additive(mlp)
    assert not is_linear(mlp)
    assert not torch.equal(first_map(mlp), first)


def test_the_fresh_weights_follow_from_the_seed_and_no_random_state_changes(fresh: Llava) -> None:
    state = torch.random.get_rng_state()
    drawn = [first_map(with_connector(fresh, "mlp", seed=seed)).clone() for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(state, torch.random.get_rng_state())
    assert with_connector(fresh, "keep", seed=0) is fresh


def test_the_identity_is_never_claimed_as_trained(fresh: Llava) -> None:
    names = {True: set(), False: set(resolve(LayerPlan("none"), fresh).parameters)}
    names[True] = set(resolve(LayerPlan("none"), with_connector(fresh, "linear", seed=0)).parameters)
    assert {name.rsplit(".", 2)[1] for name in names[False]} == {"linear_1", "linear_2"}
    assert names[True] == {name for name in names[False] if "linear_1" in name}


@pytest.mark.parametrize("connector", ["linear", "mlp"])
def test_stage_1_trains_a_fresh_connector_into_a_folder_of_plain_transformers(
    connector: str, base: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = [
        "--model", str(base), "--stage", "1", "--connector", connector, "--scenes", "4", "--steps", "2", "--batch-size",
        "2", "--max-length", "500", "--eval-data", "scenes", "--eval-limit", "2", "--save-every", "0",
        "--dtype", "bfloat16", "--out", str(out),
    ]  # fmt: skip
    main(arguments)
    tuned = LlavaForConditionalGeneration.from_pretrained(out, dtype=torch.float32)
    assert tuned.config.projector_hidden_act == ("linear" if connector == "linear" else "gelu")
    projector = tuned.model.multi_modal_projector
    eye = torch.eye(projector.linear_2.weight.shape[0])
    assert torch.equal(projector.linear_2.weight, eye) == (connector == "linear")
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert logged[-1]["eval/captions/log_prob_per_token"] < 0
    assert load(out).n_layers == 3  # with its checks on a real forward


def test_captions_that_stage_1_is_scored_on_are_none_that_it_trains_on(llava: Llava) -> None:
    scored = SceneMix(4, stage=1, first=FIRST_CAPTION_SCENE)
    trained = {SceneMix(50, stage=1)[index].id for index in range(50)}
    assert not trained & {scored[index].id for index in range(4)}
    table = score_answers(llava, samples_of(llava, scored, PromptFormat("plain")), batch_size=2)
    assert len(table) == 4
    assert (table["tokens"] > 5).all()
