"""The options of ``layerwise-finetune``, and the two stages of LLaVA as recipes. See ``records.options``.

Source of the recipes: Liu et al. 2024, "Improved Baselines with Visual Instruction Tuning", arXiv 2310.03744.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from records.manifest import RunKind
from records.options import (
    ConfigFile,
    DryRun,
    Flag,
    FollowLinks,
    Images,
    ModelOptions,
    OrDefault,
    Out,
    Overwrite,
    Seed,
    SkipBad,
    named,
    settings_of,
    slug,
)
from tasks.errors import UserError
from tuning.data.prompt_format import Grouping, OnLong, PromptFormat
from tuning.plan.plan import WHOLE, LayerPlan, Lisa, Lora, Method

RUN = RunKind(
    "layerwise-finetune",
    writes=(
        "checkpoint-*", "prefix", "log.jsonl", "evaluations.csv", "plan.json", "cost.json", "skipped*.csv",
        "*.safetensors", "*.json", "*.jinja", "*.model", "*.txt",
    ),
    last="cost.json",
)  # fmt: skip
SCENES = "scenes"  # the embedded data set
FORKS = sys.platform == "linux"  # macOS and Windows cannot, or not safely
Stage = Literal[1, 2]
Connector = Literal["keep", "linear", "mlp"]
LossMean = Literal["micro-batch", "token"]
# Options that may differ when a run is resumed.
NOT_SETTINGS = (
    "out", "overwrite", "dry_run", "config", "device", "attn", "gradient_checkpointing", "compile", "keep_prefix",
    "save_every", "keep", "log_every", "eval_every", "workers", "eval_data", "eval_limit", "resume", "merge",
    "follow_links",
)  # fmt: skip


class StageRecipe(NamedTuple):
    """What a stage of LLaVA-1.5 fixes: template, learning rates, grouping by modality, and what trains."""

    prompt_format: PromptFormat
    lr: float
    projector_lr: float
    by_modality: bool
    plan: LayerPlan


RECIPES: dict[Stage, StageRecipe] = {
    1: StageRecipe(PromptFormat("plain", preprocess="hf"), 1e-3, 1e-3, False, LayerPlan("none", ("projector",))),
    2: StageRecipe(PromptFormat("vicuna_v1"), 2e-5, 2e-5, True, LayerPlan("all", WHOLE)),
}
LORA_LR = 2e-4  # learning rate of the factors in LLaVA-1.5's LoRA recipe


@dataclass(frozen=True)
class PlanOptions:
    """The layer plan: which parameters train.

    Example:
        >>> PlanOptions(layers="6-16").resolved(stage=2).label
        '6-16+projector'
    """

    layers: OrDefault[str] = None
    """Blocks of the language model: `all`, `none`, `6-16`, `3,5,9`, `every:4`, `first:8`, `last:8`, `middle:0.33`,
    `random:8@0`, `auto:RUN`. [default: all in stage 2, none in stage 1]"""
    train: OrDefault[str] = None
    """Other parts, comma-separated: `projector`, `vision` or `vision:20` (the tower from block 20 on), `embeddings`,
    `final_norm`, `lm_head`; `none`. [default: projector; without --layers what the stage trains, in stage 2 all but
    the tower]"""
    method: Method = "full"
    """Full weights of the blocks, LoRA factors on them, or LISA: a few blocks at a time."""
    lora: Lora = field(default_factory=Lora)
    lisa: Lisa = field(default_factory=Lisa)
    token_plan: str = "all"
    """Layers in which image tokens are computed, in training and scoring: `all`, `6-16:hide`, `leave@16`,
    `freeze:14-31`, `keep:0.5@2:uniform`. See `inference-cost --help`."""

    def resolved(self, stage: Stage) -> LayerPlan:
        """The plan; the stage's recipe replaces options that are not given."""
        recipe = RECIPES[stage].plan
        train = ("projector",) if self.layers is not None or self.method == "lora" else recipe.train
        if self.train is not None:
            train = split_names(self.train)
        return LayerPlan(
            self.layers or recipe.layers, train, self.method, self.lora, self.lisa, token_plan=self.token_plan
        )


@dataclass(frozen=True)
class DataOptions:
    """The data that is trained on and scored.

    Example:
        >>> DataOptions("mix.json", limit=100).limit
        100
    """

    spec: Annotated[str, named("data")] = SCENES
    """`scenes`, a JSON file in LLaVA's layout (any size), or a JSONL or Parquet file of questions."""
    images: Images = None
    follow_links: FollowLinks = False
    scenes: int = 4000
    """Number of scenes, if the data are scenes."""
    format_prompts: bool = True
    """Scene questions say how to answer (`Answer the question using a single word or phrase.`)."""
    in_turn: Flag = False
    """Questions about one scene form one conversation; otherwise each attends to the picture and itself only."""
    limit: OrDefault[int] = None
    """Use only the first N samples. [default: all]"""
    eval_spec: Annotated[OrDefault[str], named("eval-data")] = None
    """`scenes` or a file to score during training. [default: none]"""
    eval_limit: int = 64
    """Largest number of samples that are scored."""
    skip_bad: SkipBad = False
    max_length: int = 2048
    """Largest number of tokens in a sample, image tokens included."""
    on_long: OnLong = "cut"
    """Cut longer samples, or leave them out."""
    preprocess: OrDefault[Literal["pad", "hf"]] = None
    """Pad pictures to a square as LLaVA-1.5 does, or use the checkpoint's own picture processor (hf). [default: pad; hf
    in stage 1]"""


@dataclass(frozen=True)
class Optimisation:
    """The optimizer. The weights depend only on the options, the data and the seed.

    Example:
        >>> Optimisation(steps=300).with_rates(RECIPES[2]).lr
        2e-05
    """

    epochs: float = 1.0
    """Passes over the data."""
    steps: OrDefault[int] = None
    """Optimizer steps in all, instead of epochs."""
    batch_size: int = 8
    """Samples per process and forward pass."""
    grad_accum: int = 1
    """Batches per optimizer step."""
    lr: OrDefault[float] = None
    """Peak learning rate of everything but projector and vision tower. [default: 2e-5; 2e-4 for LoRA; 1e-3 in stage
    1]"""
    projector_lr: OrDefault[float] = None
    """Peak learning rate of projector and vision tower. [default: 2e-5; 1e-3 in stage 1]"""
    warmup: float = 0.03
    """Share of the steps in which the learning rate rises; afterwards it falls as a cosine."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 for no clipping."""
    grouping: Grouping = "step"
    """Where samples are grouped by modality: as in LLaVA, a step's samples are random and shared out by length (step);
    or sorted by length over 50 steps, which pads less (length)."""
    loss_mean: LossMean = "micro-batch"
    """The loss of a step: the mean over its batches of their token means, as in LLaVA (micro-batch), or the mean over
    all labelled tokens of the step (token)."""
    seed: Seed = 0

    def with_rates(self, recipe: StageRecipe, method: Method = "full") -> "Optimisation":
        """A copy with the recipe's learning rates where none is given."""
        lr = LORA_LR if method == "lora" else recipe.lr
        return replace(
            self,
            lr=lr if self.lr is None else self.lr,
            projector_lr=recipe.projector_lr if self.projector_lr is None else self.projector_lr,
        )


@dataclass(frozen=True)
class RunOptions:
    """Execution options of training. They change the weights by rounding only.

    Example:
        >>> RunOptions(gradient_checkpointing=True).save_every
        100
    """

    gradient_checkpointing: Flag = False
    """Recompute blocks in the backward pass to save memory."""
    compile: Flag = False
    """Compile the blocks with torch.compile; worth it for runs of many minutes."""
    save_every: int = 100
    """Steps between checkpoints; 0 for none."""
    keep: int = 1
    """Number of checkpoints that are kept."""
    log_every: int = 10
    """Steps between lines of the log."""
    workers: int = 0
    """Processes that open and prepare pictures ahead; on Linux only."""


@dataclass(frozen=True)
class TuningConfig:
    """Train the layers of LLaVA-1.5 that a plan names. The weights depend only on the settings.

    Example:
        >>> TuningConfig(plan=PlanOptions(layers="6-16")).folder.name
        'smol-stage1-6-16-projector'
    """

    model: ModelOptions = field(default_factory=lambda: ModelOptions(name="smol-stage1"))
    plan: PlanOptions = field(default_factory=PlanOptions)
    data: DataOptions = field(default_factory=DataOptions)
    optimisation: Optimisation = field(default_factory=Optimisation)
    run: RunOptions = field(default_factory=RunOptions)
    stage: Stage = 2
    """LLaVA's recipe: 1 (projector, plain prompts) or 2 (conversations, batches by modality)."""
    connector: Connector = "keep"
    """The model's own connector, or a new one: one linear map (LLaVA), or two with GELU (LLaVA-1.5)."""
    keep_prefix: Flag = False
    """Over several epochs, store the frozen layers' output on disk."""
    eval_every: int = 0
    """Steps between evaluations; 0 for one at the end."""
    merge: Flag = False
    """Merge LoRA factors into the weights before saving."""
    resume: OrDefault[Path] = None
    """Checkpoint to resume from; `last` is the last one in the run directory. [default: the last whole one]"""
    out: Out = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
    config: ConfigFile = None

    @property
    def recipe(self) -> StageRecipe:
        """The stage's recipe."""
        return RECIPES[self.stage]

    @property
    def layer_plan(self) -> LayerPlan:
        """The plan; the stage's recipe replaces options that are not given."""
        return self.plan.resolved(self.stage)

    @property
    def training(self) -> Optimisation:
        """The optimizer's options, with the stage's learning rates where none is given."""
        return self.optimisation.with_rates(self.recipe, self.plan.method)

    @property
    def prompt_format(self) -> PromptFormat:
        """The stage's format with the longest length of this run."""
        given = self.recipe.prompt_format
        return replace(
            given,
            max_length=self.data.max_length,
            on_long=self.data.on_long,
            preprocess=self.data.preprocess or given.preprocess,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Every option that decides the weights."""
        return settings_of(self, without=NOT_SETTINGS)

    @property
    def folder(self) -> Path:
        """The run directory: ``out``, or a folder in ``runs/`` named after model and plan."""
        return self.out or Path("runs") / f"{slug(self.model.name)}-{slug(self.layer_plan.label)}"


def is_bf16(model: ModelOptions) -> bool:
    """True if frozen weights and products are bfloat16; trained weights are always float32. float16 is an error."""
    if model.dtype == "float16":
        raise UserError("dtype must be float32 or bfloat16 for training, got float16. Use bfloat16.")
    return model.dtype == "bfloat16"


def check_held(model: ModelOptions, *, method: str) -> None:
    """Raise ``UserError`` if the weights are held in a way in which ``method`` cannot train them."""
    if model.device_map is not None:
        raise UserError(
            f"device-map must be left out in training, got {model.device_map}. Weights in main memory get no gradient."
        )
    if model.quantize is not None and method != "lora":
        raise UserError(f"quantize must have LoRA factors to train, got --method {method}. Add --method lora.")


def split_names(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list; empty for ``none``."""
    return () if text.strip() in ("", "none") else tuple(part.strip() for part in text.split(","))


def check_numbers(optimisation: Optimisation, options: RunOptions, *, others: Mapping[str, int | None]) -> None:
    """Raise ``UserError`` if a number is out of range; ``others`` (by option name) must be at least 1 or None."""
    o, r = optimisation, options
    least: dict[str, tuple[float | None, float]] = {
        **{name: (count, 1) for name, count in others.items()},
        "steps": (o.steps, 1),
        "batch-size": (o.batch_size, 1),
        "grad-accum": (o.grad_accum, 1),
        "lr": (o.lr, 0),
        "projector-lr": (o.projector_lr, 0),
        "weight-decay": (o.weight_decay, 0),
        "clip": (o.clip, 0),
        "save-every": (r.save_every, 0),
        "keep": (r.keep, 1),
        "log-every": (r.log_every, 1),
        "workers": (r.workers, 0),
        "seed": (o.seed, 0),
    }
    for name, (value, floor) in least.items():
        if value is not None and not value >= floor:  # false for NaN
            raise UserError(f"{name} must be >= {floor}, got {value}. See layerwise-finetune --help.")
    if r.workers and not FORKS:
        raise UserError(
            f"workers must be 0 on {sys.platform}, got {r.workers}. Only Linux copies a process that holds a model."
        )
    if not 0 <= o.warmup < 1:
        raise UserError(f"warmup must be a share of the steps in [0, 1), got {o.warmup}. Write 0.03 for 3 per cent.")
    if o.seed >= 2**32:
        raise UserError(f"seed must be below 2^32, got {o.seed}. See layerwise-finetune --help.")
    if not o.epochs > 0:
        raise UserError(f"epochs must be > 0, got {o.epochs}. See layerwise-finetune --help.")
