"""``tune`` gives the weights of ``layerwise-finetune`` with the same options, and leaves the user's model as it is."""

from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from models.loading.load import load
from records.options import ModelOptions
from tasks.dataset import Dataset
from tasks.errors import UserError
from tasks.examples_from import examples_from
from tests.tuning.conftest import LlavaRows
from tuning.config import DataOptions, Optimisation, PlanOptions, TuningConfig
from tuning.in_memory import tune
from tuning.run import FinishedTuning, run_tuning

STEPS = {"steps": 2, "batch_size": 2, "learning_rate": 0.01}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary folders are deleted with the test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def rows(llava_json: LlavaRows) -> Path:
    """Four questions about pictures, in LLaVA's layout."""
    return llava_json(
        {
            "id": str(n),
            "image": f"{n}.png",
            "conversations": [
                {"from": "human", "value": f"<image>\nWhat is number {n}?"},
                {"from": "gpt", "value": f"thing {n}"},
            ],
        }
        for n in range(4)
    )


def test_a_model_in_memory_a_folder_and_the_command_give_the_same_weights(
    base: Path, rows: Path, tmp_path: Path
) -> None:
    config = TuningConfig(
        ModelOptions(str(base)), PlanOptions(layers="1"), DataOptions(str(rows)),
        Optimisation(steps=2, batch_size=2, lr=0.01, projector_lr=0.01), out=tmp_path / "command",
    )  # fmt: skip
    command = run_tuning(config)
    llava = load(base)
    before = {name: tensor.clone() for name, tensor in llava.model.state_dict().items()}
    in_memory = tune(llava, rows, layers="1", **STEPS)
    by_name = tune(str(base), str(rows), images=rows.parent, layers="1", out=tmp_path / "named", **STEPS)
    assert isinstance(command, FinishedTuning)
    assert_equal(weights(in_memory.folder), weights(command.folder))
    assert_equal(weights(by_name.folder), weights(command.folder))
    assert in_memory.plan["parameters"] == command.plan["parameters"]
    changed = {name for name, tensor in weights(command.folder).items() if not torch.equal(tensor, before[name])}
    assert changed == set(command.plan["parameters"])
    assert_equal(dict(llava.model.state_dict()), before)  # the user's model is not trained
    assert "2, " in in_memory._repr_html_() and "steps:   2" in repr(in_memory)


def test_examples_in_memory_are_trained_on_and_a_changed_one_is_noticed(base: Path, rows: Path, tmp_path: Path) -> None:
    pictures = [rows.parent / f"{n}.png" for n in range(4)]
    questions = [f"What is number {n}?" for n in range(4)]
    examples = examples_from(pictures, question=questions, answer=[f"thing {n}" for n in range(4)])
    llava = load(base)
    of_file = tune(llava, rows, layers="1", **STEPS)
    of_list = tune(llava, examples, layers="1", out=tmp_path / "list", **STEPS)
    of_data = tune(llava, Dataset("mine", examples, (), "1"), layers="1", **STEPS)
    assert_equal(weights(of_list.folder), weights(of_file.folder))
    assert_equal(weights(of_data.folder), weights(of_file.folder))
    again = tune(llava, examples, layers="1", out=tmp_path / "list", **STEPS)
    assert again.cost == of_list.cost  # finished, so not run again
    other = examples_from(pictures, question=questions, answer="something else")
    with pytest.raises(UserError, match="out must contain the same run or none"):
        tune(llava, other, layers="1", out=tmp_path / "list", **STEPS)


def test_a_bf16_model_in_memory_is_trained_in_float32(base: Path, rows: Path) -> None:
    llava = load(base, dtype="bfloat16")
    tuned = load(tune(llava, rows, layers="1", train="none", **STEPS).folder)
    assert llava.dtype == torch.bfloat16
    kept = [name for name in llava.model.state_dict() if ".layers.1." not in name]
    ours, theirs = llava.model.state_dict(), tuned.model.state_dict()
    assert all(torch.equal(ours[name].float(), theirs[name]) for name in kept)
