"""A model that is in memory is used as it is, where it is the one that the settings name."""

from pathlib import Path

import pytest
import torch

from models.llava import Llava
from models.loading.load import load
from records.open_model import open_model, other_model
from records.options import ModelOptions
from tasks.errors import UserError
from tests.conftest import tiny_config


def test_the_given_model_is_used_and_none_loaded(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = ModelOptions(name=str(checkpoint), dtype="float32")
    there = load(checkpoint, dtype=torch.float32)
    monkeypatch.setattr("records.open_model.load", None)
    assert open_model(named, device="cpu", seed=0, given=there) is there


def test_the_named_model_is_loaded(checkpoint: Path, llava: Llava) -> None:
    loaded = open_model(ModelOptions(name=str(checkpoint), attn="eager", dtype="float16"), device="cpu", seed=0)
    assert (loaded.id, loaded.attention, loaded.dtype) == (checkpoint.name, "eager", torch.float16)
    other = other_model(ModelOptions(name="smol", revision="main", attn="eager"), str(checkpoint), device="cpu", seed=0)
    assert (other.id, other.attention) == (checkpoint.name, "eager")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ModelOptions("smol"), "got name 'tiny' where they have 'smol'"),
        (ModelOptions("PATH", revision="v1"), "got revision 'None' where they have 'v1'"),
        (ModelOptions("PATH", dtype="bfloat16"), "got dtype 'torch.float32' where they have 'torch.bfloat16'"),
        (ModelOptions("PATH", attn="eager"), "got attn 'sdpa' where they have 'eager'"),
    ],
)
def test_another_model_than_the_settings_name_is_refused(checkpoint: Path, options: ModelOptions, message: str) -> None:
    named = ModelOptions(**{**vars(options), "name": options.name.replace("PATH", str(checkpoint))})
    with pytest.raises(UserError, match=message):
        open_model(named, device="cpu", seed=0, given=load(checkpoint))
    with pytest.raises(UserError, match="got device 'cpu' where they have 'meta'"):
        open_model(ModelOptions(str(checkpoint)), device="meta", seed=0, given=load(checkpoint))


def test_random_weights_of_another_seed_are_another_model() -> None:
    given = load(tiny_config(), seed=3)
    assert open_model(ModelOptions("random"), device="cpu", seed=3, given=given) is given
    with pytest.raises(UserError, match="got name 'random@3'"):
        open_model(ModelOptions("random"), device="cpu", seed=4, given=given)
