"""The settings of a patch sweep. Their fields are the options of ``patch-sweep``; see ``records.options``."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from interventions.engines.names import EngineName
from interventions.plan.options import FLOW, OPERATIONS, Corruption, Metric, Op, check_window
from records.manifest import RunKind
from records.options import (
    ConfigFile,
    DryRun,
    Flag,
    Images,
    ModelOptions,
    OrDefault,
    Out,
    Overwrite,
    Preprocess,
    Repeated,
    Seed,
    named,
    plain,
    settings_of,
    slug,
)
from tasks.errors import UserError

if TYPE_CHECKING:
    from interventions.plan.plan import InterventionPlan

ERROR_TABLE = "attribution_error.csv"
RUN = RunKind("patch-sweep", writes=("cells", "pairs.parquet", "values.parquet", ERROR_TABLE, "picture.png"))
DEFAULT_LIMIT = 100  # pairs of scenes: for smol a map of all layers takes minutes of two cores
# Options of single operations: field -> (field of the operation's own options, the operations).
_OWN: dict[str, tuple[str, tuple[Op, ...]]] = {
    "direction": ("direction", ("patch", "attribute")),
    "ablation": ("kind", ("ablate",)),
    "hidden": ("visible", ("skip",)),
    "steer_file": ("", ("steer",)),
    "steer_name": ("direction", ("steer",)),
    "alpha": ("alpha", ("steer",)),
    "unit": ("unit", ("steer",)),
    "donor": ("donor", ("transplant",)),
    "with_head": ("head", ("transplant",)),
    "with_projector": ("projector", ("transplant",)),
}


@dataclass(frozen=True)
class InterventionOptions:
    """Where to intervene, and how."""

    op: Op = "patch"
    """Operation."""
    sites: Annotated[Repeated[str], named("site")] = ()
    """Activation to change: `resid_pre`, `z`, `vision:resid_post`, `projector:out`. [default: resid_pre; for ablate
    attn_out and mlp_out; for steer resid_post]"""
    layers: OrDefault[str] = None
    """Layers, as `0-31` or `3,5,9`. [default: all]"""
    window: OrDefault[str] = None
    """Layers changed together: an odd number around each layer, `up-to`, `onward`, or `together`. [default: 1; 5 for
    knockout, onward for skip, up-to for transplant]"""
    tokens: Repeated[str] = ()
    """Token group: `image`, `object`, `question`, `last`, `text`, `all`, `answer`, `patch(2,3)`, `image-object`, or
    `patches` for each patch; for knockouts `image->last`. [default: image, question, last]"""
    sources: Annotated[Repeated[str], named("from")] = ()
    """knockout: the group that is no longer attended to."""
    targets: Annotated[Repeated[str], named("to")] = ()
    """knockout: the group that no longer attends to it."""
    heads: OrDefault[str] = None
    """For q, k, v, z and knockouts: `all` for each on its own, `0,3-5`, or `0+3` together. [default: all together]"""
    direction: OrDefault[Literal["denoise", "noise"]] = None
    """patch, attribute: clean into the corrupt run, or corrupt into the clean run. [default: denoise]"""
    ablation: OrDefault[Literal["zero", "mean", "resample"]] = None
    """ablate: what replaces the activation. [default: mean]"""
    hidden: Flag = False
    """skip: no other position attends to the skipped positions there."""
    steer_file: OrDefault[Path] = None
    """steer: safetensors file of directions."""
    steer_name: OrDefault[str] = None
    """steer: name of the direction in the file. [default: direction]"""
    alpha: OrDefault[float] = None
    """steer: length of the added vector, below 0 to steer away. [default: 1]"""
    unit: OrDefault[Literal["norm", "absolute"]] = None
    """steer: unit of alpha, the activation's mean norm or that of the activation. [default: norm]"""
    donor: OrDefault[str] = None
    """transplant: checkpoint that the layers come from. [default: smol]"""
    with_head: Flag = False
    """transplant: exchange the final norm and the head too."""
    with_projector: Flag = False
    """transplant: exchange the projector too."""
    metrics: Annotated[Repeated[Metric], named("metric")] = ()
    """`logit_difference`, `log_prob`, `probability`, `kl` or `accuracy`. [default: logit_difference, accuracy]"""
    engine: EngineName = "incremental"
    """`incremental` computes only what can change; `full` runs whole forwards. Both give the same numbers."""

    def plan(self, corruption: Corruption, *, seed: int = 0) -> "InterventionPlan":
        """The plan that the options mean, with the defaults of the operation.

        Args:
            corruption: How the corrupt run is made.
            seed: Seed of resample ablation.

        Raises:
            UserError: If the options are invalid.
        """
        from interventions.plan.groups import is_pictured  # imports torch, which --help does not need
        from interventions.plan.plan import InterventionPlan

        default = OPERATIONS[self.op]
        if bool(self.sources) != bool(self.targets):
            raise UserError("from must go with to, got one of the two. A knockout needs a source and a target.")
        sites = tuple(self.sites) or default.sites
        tokens = (*self.tokens, *(f"{source}{FLOW}{target}" for source in self.sources for target in self.targets))
        if not tokens:
            # before the language model there are only image tokens
            pictured = any(site.startswith(("vision", "projector")) for site in sites)
            tokens = tuple(group for group in default.tokens if not pictured or is_pictured(group))
        fallback: tuple[Metric, ...] = ("logit_difference", *(("accuracy",) if self.op != "attribute" else ()))
        window: Any = default.window if self.window is None else self.window
        if isinstance(window, str) and window.lstrip("-").isdigit():
            window = int(window)
        check_window(window)
        return InterventionPlan(
            self.op,
            sites=sites,
            layers=self.layers,
            window=window,
            tokens=tokens,
            heads=self.heads,
            options=default.options(**self._own(seed)),
            corruption=corruption,
            metrics=tuple(dict.fromkeys(self.metrics)) or fallback,
            engine=self.engine,
        )

    def _own(self, seed: int) -> dict[str, Any]:
        """The given options of the operation, by field of its options class."""
        found: dict[str, Any] = {"seed": seed} if self.op == "ablate" else {}
        for name, (own, ops) in _OWN.items():
            value = getattr(self, name)
            if value is None or value is False:
                continue
            if self.op not in ops:
                raise UserError(f"{name.replace('_', '-')} must go with op {' or '.join(ops)}, got op {self.op!r}.")
            if own:
                found[own] = not value if own == "visible" else value
        return found


@dataclass(frozen=True)
class PairOptions:
    """The pairs of a clean and a corrupt example."""

    spec: Annotated[str, named("data")] = "scenes"
    """`scenes`, or a JSONL or Parquet file with the columns clean, corrupt (pictures), question, answer, foil."""
    images: Images = None
    attribute: Annotated[str, named("pair")] = "colour"
    """What differs between the scenes of a pair: `kind`, `colour`, `place` or `drawing`."""
    split: OrDefault[str] = None
    """Split of the scenes. [default: test]"""
    limit: OrDefault[int] = None
    """At most so many pairs. [default: 100 for scenes, else all]"""
    preprocess: Preprocess = "pad"


@dataclass(frozen=True)
class CorruptionOptions:
    """How the corrupt run is made."""

    kind: Annotated[Literal["pair", "blank", "noise"], named("corruption")] = "pair"
    """The corrupt run: the pair's other picture, a blank picture, or noise on the image embeddings."""
    scale: Annotated[OrDefault[float], named("noise-scale")] = None
    """Standard deviation of the noise, in standard deviations of the embeddings. [default: 3]"""
    seeds: Annotated[Repeated[int], named("noise-seed")] = ()
    """Seed of the noise; results are means over seeds. [default: 0]"""

    def corruption(self) -> Corruption:
        """The corruption of a plan.

        Raises:
            UserError: If the options are invalid.
        """
        if self.kind != "noise" and (self.scale is not None or self.seeds):
            raise UserError(f"noise-scale and noise-seed must go with corruption noise, got {self.kind!r}.")
        return Corruption(self.kind, 3.0 if self.scale is None else self.scale, tuple(self.seeds) or (0,))


@dataclass(frozen=True)
class PatchConfig:
    """Run every intervention on every pair. Equal settings but for the run directory's give equal results."""

    intervention: InterventionOptions = field(default_factory=InterventionOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    pairs: PairOptions = field(default_factory=PairOptions)
    corruption: CorruptionOptions = field(default_factory=CorruptionOptions)
    seed: Seed = 0
    batch_size: int = 8
    """Pairs that run together."""
    out: Out = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
    config: ConfigFile = None

    @cached_property
    def plan(self) -> "InterventionPlan":
        """The plan of the settings.

        Raises:
            UserError: If the settings are invalid.
        """
        return self.intervention.plan(self.corruption.corruption(), seed=self.seed)

    @property
    def settings(self) -> dict[str, Any]:
        """Every option that decides the results, as the manifest stores it, with the defaults of the operation."""
        plan = self.plan
        chosen: dict[str, Any] = {
            "site": plan.sites, "tokens": plan.tokens, "from": (), "to": (), "window": str(plan.window),
            "metric": plan.metrics, "noise_scale": plan.corruption.scale, "noise_seed": plan.corruption.seeds,
        }  # fmt: skip
        for name, (own, ops) in _OWN.items():
            if own and self.intervention.op in ops:
                value = getattr(plan.options, own)
                chosen[name] = not value if own == "visible" else value
        return settings_of(self) | {name: plain(value) for name, value in chosen.items()}

    @property
    def folder(self) -> Path:
        """The run directory: ``out``, or a folder in ``runs/`` named after operation, model and data."""
        return self.out or Path("runs") / f"{self.intervention.op}-{slug(self.model.name)}-{slug(self.pairs.spec)}"
