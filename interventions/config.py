"""The settings of a patch sweep. Their fields are the options of ``patch-sweep``; see ``records.options``."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from interventions.engines.names import EngineName
from interventions.plan.options import (
    CIDER,
    FLOW,
    OPERATIONS,
    AblateOptions,
    Corruption,
    Metric,
    Op,
    Options,
    PatchOptions,
    SkipOptions,
    SteerOptions,
    TransplantOptions,
    check_window,
)
from records.manifest import RunKind
from records.options import (
    MOST_NEW_TOKENS,
    ConfigFile,
    DryRun,
    Flag,
    FollowLinks,
    Images,
    ModelOptions,
    OrDefault,
    Out,
    Overwrite,
    Preprocess,
    Repeated,
    Seed,
    check_ranges,
    named,
    options_of,
    plain,
    settings_of,
    slug,
)
from tasks.errors import UserError

if TYPE_CHECKING:
    from interventions.plan.plan import InterventionPlan

ERROR_TABLE = "attribution_error.csv"
ATTENTION, ATTENTION_TEXT = "attention.safetensors", "attention.json"
RUN = RunKind(
    "patch-sweep",
    writes=(
        "cells", "pairs.parquet", "values.parquet", ERROR_TABLE, "picture.png", "pictures", ATTENTION, ATTENTION_TEXT,
    ),
)  # fmt: skip
CAPTION_TOKENS = 64
DEFAULT_LIMIT = 100  # pairs of scenes; smol then takes minutes on two cores for a map of all layers


@dataclass(frozen=True)
class InterventionOptions:
    """Where to intervene, and how."""

    op: Op = "patch"
    """Operation."""
    sites: Annotated[Repeated[str], named("site")] = ()
    """Activation to change: `resid_pre`, `z`, `vision:resid_post`, `projector:out`. [default: resid_pre; for ablate
    attn_out and mlp_out; for steer resid_post]"""
    layers: OrDefault[str] = None
    """Layers, such as `0-31` or `3,5,9`. [default: all]"""
    window: OrDefault[str] = None
    """Layers changed together: an odd number around each layer, `up-to`, `onward`, or `together`. [default: 1; 5 for
    knockout, onward for skip, up-to for transplant]"""
    tokens: Repeated[str] = ()
    """Token group: `image`, `object`, `question`, `last`, `text`, `all`, `answer`, `patch(2,3)`, `image-object`, or
    `patches` for each patch; for knockouts `image->last`. [default: image, question, last]"""
    sources: Annotated[Repeated[str], named("from")] = ()
    """knockout: the group of keys, which the target no longer attends to."""
    targets: Annotated[Repeated[str], named("to")] = ()
    """knockout: the group that no longer attends to `--from`."""
    heads: OrDefault[str] = None
    """For q, k, v, z and knockouts: `all` for each on its own, `0,3-5`, or `0+3` together. [default: all together]"""
    patch: PatchOptions = field(default_factory=PatchOptions)
    ablate: AblateOptions = field(default_factory=AblateOptions)
    skip: SkipOptions = field(default_factory=SkipOptions)
    steer: SteerOptions = field(default_factory=SteerOptions)
    steer_file: OrDefault[Path] = None
    """steer: safetensors file of directions."""
    transplant: TransplantOptions = field(default_factory=TransplantOptions)
    metrics: Annotated[Repeated[Metric], named("metric")] = ()
    """`logit_difference`, `log_prob`, `probability`, `kl` or `accuracy`; or `cider` of captions that are generated
    under each intervention. [default: logit_difference, accuracy]"""
    attention: OrDefault[int] = None
    """knockout with heads: save the attention over the picture of so many clean runs, the first ones, in at most 64 MB.
    [default: 3]"""
    engine: EngineName = "incremental"
    """`incremental` computes only what can change; `full` runs complete forward passes. Both give the same numbers."""

    def plan(self, corruption: Corruption, *, seed: int = 0) -> "InterventionPlan":
        """The plan of these options, with the operation's defaults; ``seed`` is the seed of resample ablation."""
        from interventions.plan.groups import is_pictured  # imports torch, which --help does not need
        from interventions.plan.plan import InterventionPlan

        default = OPERATIONS[self.op]
        self._check_attention()
        if bool(self.sources) != bool(self.targets):
            raise UserError("from must go with to, got only one. A knockout needs a source and a target.")
        sites = tuple(self.sites) or default.sites
        tokens = (*self.tokens, *(f"{source}{FLOW}{target}" for source in self.sources for target in self.targets))
        if not tokens:
            # Before the language model there are only image tokens.
            pictured = any(site.startswith(("vision", "projector")) for site in sites)
            tokens = tuple(group for group in default.tokens if not pictured or is_pictured(group))
        fallback: tuple[Metric, ...] = ("logit_difference", *(("accuracy",) if self.op != "attribute" else ()))
        window: Any = default.window if self.window is None else self.window
        if isinstance(window, str) and window.lstrip("-").isdigit():
            window = int(window)
        check_window(window)
        return InterventionPlan(
            self.op, sites=sites, layers=self.layers, window=window, tokens=tokens, heads=self.heads,
            options=self._options(seed), corruption=corruption, metrics=tuple(dict.fromkeys(self.metrics)) or fallback,
            engine=self.engine,
        )  # fmt: skip

    @property
    def by_operation(self) -> tuple[Options, ...]:
        """The options of each operation that has options."""
        return self.patch, self.ablate, self.skip, self.steer, self.transplant

    def check_given(self, names: Collection[str]) -> None:
        """Raise ``UserError`` if an option that was given belongs to another operation."""
        owners: dict[str, type] = {"steer-file": SteerOptions}
        owners |= {option.name: type(options) for options in self.by_operation for option in options_of(options)}
        for name, owner in owners.items():
            if name in names and owner is not OPERATIONS[self.op].options:
                ops = " or ".join(op for op, operation in OPERATIONS.items() if operation.options is owner)
                raise UserError(f"{name} must go with op {ops}, got op {self.op!r}.")

    @property
    def saves_attention(self) -> bool:
        """True if the cells cut attention edges of single heads, whose attention is saved."""
        return self.op == "knockout" and self.heads is not None and self.attention != 0

    def _check_attention(self) -> None:
        if self.attention is None:
            return
        if self.op != "knockout" or self.heads is None:
            raise UserError(
                f"attention must go with op knockout and heads, got op {self.op!r} with heads {self.heads!r}. "
                "Set --heads all."
            )
        if self.attention < 0:
            raise UserError(f"attention must be >= 0, got {self.attention}. It counts pairs.")

    def _options(self, seed: int) -> Options:
        """The operation's options; raise ``UserError`` if an option of another operation differs from its default."""
        kind = OPERATIONS[self.op].options
        changed = {"steer-file"} if self.steer_file is not None else set()
        for options in self.by_operation:
            pairs = zip(options_of(options), options_of(type(options)()), strict=True)
            changed |= {ours.name for ours, default in pairs if ours.value != default.value}
        self.check_given(changed)
        found = next((options for options in self.by_operation if type(options) is kind), kind())
        return replace(found, seed=seed) if isinstance(found, AblateOptions) else found


@dataclass(frozen=True)
class PairOptions:
    """The pairs of a clean and a corrupt example."""

    spec: Annotated[str, named("data")] = "scenes"
    """`scenes`, a JSONL or Parquet file with the columns clean, corrupt (pictures), question, answer, foil, or
    `benchmark:pope=FOLDER`: pairs of questions with the same words, other pictures and other answers."""
    images: Images = None
    follow_links: FollowLinks = False
    attribute: Annotated[str, named("pair")] = "colour"
    """What differs between the scenes of a pair: `kind`, `colour`, `place` or `drawing`."""
    split: OrDefault[str] = None
    """Split of the scenes. [default: test]"""
    limit: OrDefault[int] = None
    """Largest number of pairs. [default: 100 for scenes, else all]"""
    capital_answers: Flag = False
    """Benchmark: answers begin with a capital letter, as LLaVA-1.5 writes `Yes` and `No`."""
    preprocess: Preprocess = "pad"


@dataclass(frozen=True)
class PatchConfig:
    """Run every intervention on every pair. Results depend only on the settings, not on the run directory."""

    intervention: InterventionOptions = field(default_factory=InterventionOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    pairs: PairOptions = field(default_factory=PairOptions)
    corruption: Corruption = field(default_factory=Corruption)
    new_tokens: OrDefault[int] = None
    """cider: largest number of tokens of a caption. [default: 64]"""
    noise_seeds: Annotated[Repeated[int], named("noise-seed")] = ()
    """Seed of the noise; results are means over seeds. [default: 0]"""
    seed: Seed = 0
    batch_size: int = 8
    """Pairs that run together."""
    out: Out = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
    config: ConfigFile = None

    def __post_init__(self) -> None:
        """Check the length of captions."""
        check_ranges(("new-tokens", self.new_tokens, 1, MOST_NEW_TOKENS))

    def check_given(self, names: Collection[str]) -> None:
        """Raise ``UserError`` if an option that was given has no effect."""
        self.intervention.check_given(names)
        if self.corruption.kind != "noise" and {"noise-scale", "noise-seed"}.intersection(names):
            raise UserError(f"noise-scale and noise-seed must go with corruption noise, got {self.corruption.kind!r}.")

    @property
    def caption_tokens(self) -> int:
        """Largest number of tokens of a caption; 0 if no captions are generated."""
        if CIDER not in self.plan.metrics:
            return 0
        return CAPTION_TOKENS if self.new_tokens is None else self.new_tokens

    @cached_property
    def plan(self) -> "InterventionPlan":
        """The plan of the settings."""
        corruption = replace(self.corruption, seeds=tuple(self.noise_seeds) or self.corruption.seeds)
        self.check_given(("noise-scale",) if corruption != Corruption(corruption.kind) else ())
        return self.intervention.plan(corruption, seed=self.seed)

    @property
    def settings(self) -> dict[str, Any]:
        """Every option that decides the results, as the manifest stores it, with the defaults of the operation."""
        plan = self.plan
        found = settings_of(self)
        for options in self.intervention.by_operation:
            if type(options) is not type(plan.options):  # these have no effect
                found |= {name: False if value is False else None for name, value in settings_of(options).items()}
        chosen: dict[str, Any] = {
            "new_tokens": self.caption_tokens or None,
            "site": plan.sites, "tokens": plan.tokens, "from": (), "to": (), "window": str(plan.window),
            "metric": plan.metrics, "noise_seed": plan.corruption.seeds,
        }  # fmt: skip
        return found | {name: plain(value) for name, value in chosen.items()}

    @property
    def folder(self) -> Path:
        """The run directory: ``out``, or a folder in ``runs/`` named after operation, model and data."""
        return self.out or Path("runs") / f"{self.intervention.op}-{slug(self.model.name)}-{slug(self.pairs.spec)}"
