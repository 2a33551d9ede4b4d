"""Names that no file system can hold end in one sentence, wherever a checkpoint or a data file has them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from interventions.operations.directions import load_directions
from models.loading.checkpoints import weight_files
from models.loading.load import load
from models.loading.original import _tower_folder
from probes.activations.open import open_activations
from probes.lenses.latent import LatentLens
from probes.lenses.tuned import TunedLens
from records.evaluation.sources import open_benchmark
from tasks.errors import UserError
from tasks.files import expanded, is_file, is_folder
from tasks.readers.tables import open_table
from tuning.data.sources import open_source
from tuning.mix.part import Part, PartSpec
from tuning.plan.choose_layers import choose_layers

LONG = ["x" * 400, "x" * 5000, "someone/" + "x" * 400, "/" + "x" * 400, "~nobody/" + "x" * 400, "./" + "é" * 2000]


def tower(name: str, folder: Path) -> object:
    return _tower_folder(name, folder, needed=True)


def index(name: str, folder: Path) -> object:
    described = {"weight_map": {"lm_head.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(described), encoding="utf-8")
    return weight_files(folder)


def adapter(name: str, folder: Path) -> object:
    described = {"peft_type": "LORA", "base_model_name_or_path": name, "lora_alpha": 1}
    (folder / "adapter_config.json").write_text(json.dumps(described), encoding="utf-8")
    save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")
    return load(folder)


READ: dict[str, Callable[[str, Path], object]] = {
    "a model": lambda name, folder: load(name),
    "the base of a projector": lambda name, folder: load(folder, base=name),
    "mm_vision_tower": tower,
    "weight_map": index,
    "base_model_name_or_path": adapter,
    "a table": lambda name, folder: open_table(Path(name)),
    "training data": lambda name, folder: open_source(name),
    "a part of a mix": lambda name, folder: Part(PartSpec("a", Path(name))),
    "a run of auto": lambda name, folder: choose_layers(Path(name), 4),
    "directions": lambda name, folder: load_directions(Path(name)),
    "stored activations": lambda name, folder: open_activations(Path(name)),
    "a tuned lens": lambda name, folder: TunedLens.load(Path(name)),
    "a latent lens": lambda name, folder: LatentLens.load(Path(name)),
    "a benchmark": lambda name, folder: open_benchmark(f"pope={name}"),
}


@pytest.mark.parametrize("name", LONG, ids=range(len(LONG)))
@pytest.mark.parametrize("where", READ)
def test_a_name_that_is_too_long_is_one_sentence(where: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        READ[where](name, tmp_path)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_existing_paths_are_found(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert is_file(tmp_path / "a")
    assert is_file(tmp_path / "link")
    assert not is_file(tmp_path)
    assert is_folder(tmp_path)
    assert not is_folder(tmp_path / "a")
    assert expanded("~/a") == Path.home() / "a"
