"""What a tuning run is asked to do: frozen settings, and the two stages of LLaVA as recipes.

Source of the recipes: Liu et al. 2024, "Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from records.settings import plain
from tasks.errors import UserError
from tuning.data.labels import OnLong
from tuning.data.samples import PromptFormat
from tuning.plan.connector import Connector
from tuning.plan.plan import LayerPlan

SCENES = "scenes"  # the embedded data, where a file could stand
Stage = Literal[1, 2]


class StageRecipe(NamedTuple):
    """What a stage of LLaVA-1.5 fixes: the template, learning rates, preprocessing, grouping and what trains."""

    prompt_format: PromptFormat
    lr: float
    projector_lr: float
    by_modality: bool
    plan: LayerPlan


RECIPES: dict[int, StageRecipe] = {
    1: StageRecipe(PromptFormat("plain", preprocess="hf"), 1e-3, 1e-3, False, LayerPlan("none", ("projector",))),
    2: StageRecipe(
        PromptFormat("vicuna_v1"),
        2e-5,
        2e-5,
        True,
        LayerPlan("all", ("projector", "embeddings", "final_norm", "lm_head")),
    ),
}
LORA_LR = 2e-4  # LLaVA-1.5's LoRA recipe: factors faster than weights, the projector as before


@dataclass(frozen=True)
class Optimisation:
    """How weights move. Equal settings, data and seed give equal weights.

    Args:
        epochs: Passes over the data; ignored where ``steps`` is given.
        steps: Optimizer steps in all.
        batch_size: Samples that a process runs together.
        grad_accum: Such batches for one optimizer step.
        lr: Peak learning rate of everything but projector and vision tower.
        projector_lr: Of the projector and the vision tower.
        warmup: Share of the steps in which the rate rises; it falls as a cosine afterwards.
        weight_decay: Of AdamW.
        clip: Largest norm of all gradients together; 0 for none.
        seed: Of the data's order, LoRA's first values and LISA's blocks.
    """

    epochs: float = 1.0
    steps: int | None = None
    batch_size: int = 8
    grad_accum: int = 1
    lr: float = 2e-5
    projector_lr: float = 2e-5
    warmup: float = 0.03
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class RunOptions:
    """How a run goes about it; the weights do not depend on it but for rounding.

    Args:
        device: ``cpu``, ``cuda`` or ``cuda:1``.
        bf16: Frozen weights in bfloat16, products in bfloat16, trained weights in float32.
        gradient_checkpointing: Recompute blocks instead of keeping their activations.
        compile: Compile the language model's blocks with ``torch.compile`` for as long as the run trains.
        keep_prefix: Keep the frozen prefix's output on disk from the first epoch on.
        by_modality: Batches with and without pictures apart, alike lengths together.
        save_every: Optimizer steps between checkpoints; 0 for none.
        keep: Checkpoints that stay.
        log_every: Optimizer steps between lines of the log.
        eval_every: Optimizer steps between evaluations; 0 for one at the end.
        workers: Processes that open and prepare pictures ahead; 0 for none.
    """

    device: str = "cpu"
    bf16: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    keep_prefix: bool = False
    by_modality: bool = True
    save_every: int = 100
    keep: int = 1
    log_every: int = 10
    eval_every: int = 0
    workers: int = 0


def check_numbers(o: Optimisation, r: RunOptions, *, counts: Mapping[str, int | None]) -> None:
    """Passes if a run can have these numbers.

    Args:
        o: How weights move.
        r: How the run goes about it.
        counts: Numbers of things by option; None where none was given.

    Raises:
        UserError: If one is out of its range; the message names its option.
    """
    least: dict[str, tuple[float | None, float]] = {
        **{name: (count, 1) for name, count in counts.items()},
        "steps": (o.steps, 1),
        "batch-size": (o.batch_size, 1),
        "grad-accum": (o.grad_accum, 1),
        "lr": (o.lr, 0),
        "projector-lr": (o.projector_lr, 0),
        "warmup": (o.warmup, 0),
        "save-every": (r.save_every, 0),
        "keep": (r.keep, 1),
        "log-every": (r.log_every, 1),
        "eval-every": (r.eval_every, 0),
        "workers": (r.workers, 0),
        "seed": (o.seed, 0),
    }
    for name, (value, floor) in least.items():
        if value is not None and not value >= floor:  # NaN is no number either
            raise UserError(f"{name} must be >= {floor}, got {value}. See layerwise-finetune --help.")
    if not o.warmup < 1:
        raise UserError(f"warmup must be a share of the steps in [0, 1), got {o.warmup}. Write 0.03 for 3 per cent.")
    if o.seed >= 2**32:
        raise UserError(f"seed must be below 2^32, got {o.seed}. See layerwise-finetune --help.")
    if not o.epochs > 0:
        raise UserError(f"epochs must be > 0, got {o.epochs}. See layerwise-finetune --help.")


@dataclass(frozen=True)
class TuningData:
    """What is trained on and what is scored.

    Args:
        spec: ``"scenes"``, or a file.
        images: The folder of the file's pictures.
        scenes: How many scenes, where the data are scenes.
        format_prompts: Whether scene questions say how to answer.
        apart: Whether questions about one scene are hidden from each other.
        limit: The first so many samples.
        eval_spec: ``"scenes"``, a file, or None.
        eval_limit: Samples scored, at most.
        skip_bad: Whether to go on without samples that cannot be trained on.
        on_long: Whether samples longer than the context are cut or left out.
    """

    spec: str = "scenes"
    images: Path | None = None
    scenes: int = 4000
    format_prompts: bool = True
    apart: bool = True
    limit: int | None = None
    eval_spec: str | None = None
    eval_limit: int = 64
    skip_bad: bool = False
    on_long: OnLong = "cut"


@dataclass(frozen=True)
class TuningConfig:
    """One run of ``layerwise-finetune``."""

    model: str = "smol-stage1"
    plan: LayerPlan = field(default_factory=LayerPlan)
    data: TuningData = field(default_factory=TuningData)
    optimisation: Optimisation = field(default_factory=Optimisation)
    options: RunOptions = field(default_factory=RunOptions)
    stage: Stage = 2
    connector: Connector = "keep"
    max_length: int = 2048
    out: Path | None = None
    merge: bool = False
    resume: Path | None = None

    @property
    def prompt_format(self) -> PromptFormat:
        """How samples become tokens: the stage's recipe, with this run's longest length."""
        return replace(RECIPES[self.stage].prompt_format, max_length=self.max_length, on_long=self.data.on_long)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the weights, as plain values: what a resumed run must agree in."""
        options = {name: getattr(self.options, name) for name in ("bf16", "by_modality")}
        described = {
            "model": self.model,
            "plan": self.plan.to_dict(),
            "stage": self.stage,
            "connector": self.connector,
            "max_length": self.max_length,
            **{name: plain(value) for name, value in asdict(self.data).items() if not name.startswith("eval")},
            **asdict(self.optimisation),
            **options,
        }
        described["plan"].pop("name")
        return described
