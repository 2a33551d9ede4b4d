"""Train ``smol`` and ``smol-stage1`` from a seed: ``python -m tuning.embedded.build``.

Four stages, each of which resumes and can run alone with ``--stage``: ``vision`` trains the tower; ``stage1`` trains
the projector, first on word embeddings, then on captions with a frozen language model; ``stage2`` trains projector and
LoRA on questions and captions; ``export`` writes the parts that ship to models/embedded.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from models.loading.smol import GGUF_SHA256, PARTS, load_language_model
from tasks.errors import UserError
from tuning.embedded.language import (
    LORA_RANK,
    LORA_SCALE,
    Mix,
    Trainee,
    add_adapter,
    fresh_projector,
    lora_factors,
    train_language,
)
from tuning.embedded.language import (
    warm_start as regress_on_words,
)
from tuning.embedded.training import read_facts, snapshot_path, write_tensors
from tuning.embedded.vision import VISION_CONFIG, pretrain_vision

STAGES = ("vision", "stage1", "stage2", "export")
IMAGE_TOKEN_ID = 49152  # the first id after SmolLM2's vocabulary


def _shipped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in float16, as they ship. The tower is rounded before later stages train on it."""
    return {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in state.items()}


def _tower(work: Path) -> CLIPVisionModel:
    path = work / "tower.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{path} must exist before this stage, got no such file. Run --stage vision first.")
    tower = CLIPVisionModel(CLIPVisionConfig(**VISION_CONFIG))
    tower.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    tower.eval().requires_grad_(False)
    return tower


def _trainee(work: Path, device: str, seed: int) -> Trainee:
    tower, language = _tower(work), load_language_model()
    language.model.requires_grad_(False)
    projector = fresh_projector(tower, language.model.config.hidden_size, seed=seed)
    tower.to(device)  # type: ignore[arg-type]
    language.model.to(device)  # type: ignore[arg-type]
    return Trainee(tower, projector.to(device), language.model, language.tokenizer, IMAGE_TOKEN_ID)


def run_vision(work: Path, *, steps: int, seed: int, device: str) -> None:
    """Train the tower and write ``tower.safetensors``."""
    tower = pretrain_vision(work, steps=steps, seed=seed, device=device)
    write_tensors(_shipped(tower.state_dict()), work / "tower.safetensors")


def run_stage1(work: Path, *, steps: int, seed: int, device: str, start_warm: bool = True) -> None:
    """Warm-start the projector if ``start_warm``, train it on captions, and write ``projector-stage1.safetensors``."""
    trainee = _trainee(work, device, seed)
    warm = work / "warm.safetensors"
    if not start_warm:
        if warm.exists():
            raise UserError(f"warm-start must agree with {warm}, which an earlier run wrote. Use another --work.")
        (work / "warm.json").write_text(json.dumps({"cosine": None}), encoding="utf-8")
    elif warm.exists():
        trainee.projector.load_state_dict(load_file(warm))
    else:
        cosine = regress_on_words(trainee.projector, trainee.tower, trainee.language, trainee.tokenizer, seed=seed)
        # Written first: the other file marks the end.
        (work / "warm.json").write_text(json.dumps({"cosine": cosine}), encoding="utf-8")
        write_tensors(trainee.projector.state_dict(), warm)
        print(f"warm start: cosine of image tokens to their words {cosine:.3f}", flush=True)
    train_language(work, trainee, stage=1, steps=steps, seed=seed)
    write_tensors(trainee.projector.state_dict(), work / "projector-stage1.safetensors")
    write_tensors(_shipped(trainee.projector.folded()), work / "projector-stage1-folded.safetensors")


def run_stage2(work: Path, *, steps: int, seed: int, device: str, mix: Mix) -> None:
    """Train projector and LoRA from stage 1's projector; write ``projector.safetensors`` and ``lora.safetensors``."""
    trainee = _trainee(work, device, seed)
    trainee.projector.load_state_dict(load_file(work / "projector-stage1.safetensors"))
    add_adapter(trainee.language, seed=seed)
    trainee.language.to(device)  # type: ignore[arg-type]
    train_language(work, trainee, stage=2, steps=steps, seed=seed, mix=mix)
    write_tensors(_shipped(trainee.projector.folded()), work / "projector-folded.safetensors")
    write_tensors(_shipped(lora_factors(trainee.language)), work / "lora.safetensors")


def export(work: Path) -> None:
    """Copy the parts to models/embedded; write their hashes and training settings beside them."""
    parts = {
        "tower.safetensors": "tower.safetensors",
        "projector-stage1.safetensors": "projector-stage1-folded.safetensors",
        "projector.safetensors": "projector-folded.safetensors",
        "lora.safetensors": "lora.safetensors",
    }
    hashes = {}
    for name, source in parts.items():
        data = (work / source).read_bytes()
        (PARTS / name).write_bytes(data)
        hashes[name] = hashlib.sha256(data).hexdigest()
    facts = {
        "checkpoints": {
            "smol-stage1": {"tower": "tower.safetensors", "projector": "projector-stage1.safetensors"},
            "smol": {"tower": "tower.safetensors", "projector": "projector.safetensors", "lora": "lora.safetensors"},
        },
        "lora_scale": LORA_SCALE,
        "lora_rank": LORA_RANK,
        "vision_config": VISION_CONFIG,
        "sha256": hashes,
        "language_model_sha256": GGUF_SHA256,
        "training": {stage: read_facts(snapshot_path(work, stage)) for stage in STAGES[:3]},
        "warm_start": json.loads((work / "warm.json").read_text(encoding="utf-8")),
    }
    (PARTS / "parts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {', '.join(parts)} to {PARTS}", flush=True)


def main(
    work: Path = Path("runs/build_embedded"),
    stage: Literal["all", "vision", "stage1", "stage2", "export"] = "all",
    vision_steps: int = 1300,
    stage1_steps: int = 240,
    stage2_steps: int = 480,
    pictures: int = 3,
    texts: int = 1,
    questions: int = 7,
    seed: int = 0,
    device: str = "cpu",
    warm_start: bool = True,
) -> None:
    """Train the embedded checkpoints (2 to 3 hours on two CPU cores in float32, minutes on a GPU).

    Args:
        work: Folder of snapshots and finished stages; a killed run resumes.
        stage: The stage to run.
        vision_steps: Batches of 64 scenes for the tower.
        stage1_steps: Batches of 8 captions for the projector.
        stage2_steps: Batches of questions for projector and LoRA.
        pictures: Rows with a picture in a stage-2 batch.
        texts: Rows with a caption instead of a picture in a stage-2 batch.
        questions: Questions per row.
        seed: Seed of weights and order of the data.
        device: cpu or cuda.
        warm_start: Train the projector on word embeddings before captions. Without it, its first step is on captions.
    """
    work.mkdir(parents=True, exist_ok=True)
    mix = Mix(pictures, texts, questions)
    runs = {
        "vision": lambda: run_vision(work, steps=vision_steps, seed=seed, device=device),
        "stage1": lambda: run_stage1(work, steps=stage1_steps, seed=seed, device=device, start_warm=warm_start),
        "stage2": lambda: run_stage2(work, steps=stage2_steps, seed=seed, device=device, mix=mix),
        "export": lambda: export(work),
    }
    try:
        for name in STAGES if stage == "all" else (stage,):
            runs[name]()
    except (FileNotFoundError, FloatingPointError, UserError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    import tyro  # the command line alone needs it

    tyro.cli(main)
