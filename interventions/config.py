"""What a patch sweep is asked to do: frozen settings, and what each operation does where nothing else is said.

``PatchConfig`` is all that ``interventions.sweep.run_patch_sweep`` takes; ``build_plan`` fills in its plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from interventions.plan.groups import is_pictured
from interventions.plan.options import OPTIONS, Corruption, Op
from interventions.plan.plan import FLOW, METRICS, EngineName, InterventionPlan, Metric, WindowKind
from records.manifest import RunKind
from records.settings import ModelOptions, plain, slug
from tasks.errors import UserError, user_errors

ERROR_TABLE = "attribution_error.csv"
RUN = RunKind("patch-sweep", writes=("cells", "pairs.parquet", "values.parquet", ERROR_TABLE, "picture.png"))
DEFAULT_LIMIT = 100  # pairs of scenes: for smol a map of all layers takes minutes of two cores


class Default(NamedTuple):
    """Where an operation acts if nothing else is said."""

    sites: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    window: int | WindowKind = 1


_GROUPS = ("image", "question", "last")
DEFAULTS: dict[Op, Default] = {
    "patch": Default(("resid_pre",), _GROUPS),
    "attribute": Default(("resid_pre",), _GROUPS),
    "ablate": Default(("attn_out", "mlp_out"), _GROUPS),
    # One block alone hardly matters: the others pass on the same information.
    "knockout": Default((), (f"image{FLOW}question", f"question{FLOW}last", f"image{FLOW}last"), 5),
    "skip": Default((), ("image",), "onward"),
    "steer": Default(("resid_post",), ("image",)),
    "transplant": Default((), (), "up-to"),
}


@dataclass(frozen=True)
class PairOptions:
    """Which pairs of a clean and a corrupt example are run.

    Args:
        spec: ``"scenes"``, or a JSONL or Parquet file with a row for each pair.
        images: The folder that picture paths in the file are relative to.
        attribute: What differs between the scenes of a pair.
        split: Where scenes come from.
        limit: How many pairs at most.
        preprocess: Pad pictures to a square, or crop them.
    """

    spec: str = "scenes"
    images: Path | None = None
    attribute: str = "colour"
    split: str | None = None
    limit: int | None = None
    preprocess: Literal["pad", "hf"] = "pad"


@dataclass(frozen=True)
class PatchConfig:
    """One patch sweep. Equal settings (all but ``out``, ``overwrite`` and ``dry_run``) give equal results."""

    plan: InterventionPlan
    model: ModelOptions = field(default_factory=ModelOptions)
    pairs: PairOptions = field(default_factory=PairOptions)
    directions: Path | None = None
    seed: int = 0
    batch_size: int = 8
    out: Path | None = None
    overwrite: bool = False
    dry_run: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the results, as the manifest stores it: option -> plain value."""
        flat: dict[str, Any] = {"seed": self.seed, "batch_size": self.batch_size, "directions": self.directions}
        for part in (self.model, self.pairs):
            flat.update(asdict(part))
        for key, value in self.plan.to_dict().items():
            inner = value if isinstance(value, dict) else None
            flat.update({key: value} if inner is None else {f"{key}.{name}": item for name, item in inner.items()})
        renamed = {"name": "model", "spec": "data", "attribute": "pair"}
        return {renamed.get(key, key): plain(value) for key, value in flat.items()}

    @property
    def folder(self) -> Path:
        """Where the run is written: ``out``, or a folder in ``runs/`` that is named after operation, model and data."""
        return self.out or Path("runs") / f"{self.plan.op}-{slug(self.model.name)}-{slug(self.pairs.spec)}"


def build_plan(
    op: Op,
    *,
    sites: Sequence[str] = (),
    layers: str | None = None,
    window: str | None = None,
    tokens: Sequence[str] = (),
    flows: tuple[Sequence[str], Sequence[str]] = ((), ()),
    heads: str | None = None,
    metrics: Sequence[str] = (),
    engine: EngineName = "incremental",
    options: Mapping[str, Any] | None = None,
    corruption: Corruption | None = None,
) -> InterventionPlan:
    """The plan that the options of a command line mean.

    Args:
        op: The operation.
        sites: See ``InterventionPlan``; what is not given comes from ``DEFAULTS``.
        layers: See ``InterventionPlan``.
        window: A number, or the name of a span.
        tokens: Groups, or ``source->target``.
        flows: Sources and targets of knockouts; every source is cut off from every target.
        heads: See ``InterventionPlan``.
        metrics: Names; logit difference and accuracy if none (for ``attribute`` the former alone).
        engine: See ``InterventionPlan``.
        options: What the operation needs besides, by name.
        corruption: How the corrupt run is made.

    Raises:
        UserError: If no plan can be made of it.
    """
    default = DEFAULTS[op]
    sources, targets = flows
    if bool(sources) != bool(targets):
        raise UserError("from must go with to, got one of the two. A knockout cuts the way from one group to another.")
    groups = (*tokens, *(f"{source}{FLOW}{target}" for source in sources for target in targets))
    named = tuple(sites) or default.sites
    if not groups:
        # in front of the language model only image tokens exist
        pictured = any(site.startswith(("vision", "projector")) for site in named)
        groups = tuple(group for group in default.tokens if not pictured or is_pictured(group))
    given: list[Metric] = [metric for metric in METRICS if metric in metrics]
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown:
        raise UserError(f"metric must be one of {', '.join(METRICS)}, got {unknown[0]!r}. Name what to read out.")
    fallback: tuple[Metric, ...] = ("logit_difference",) if op == "attribute" else ("logit_difference", "accuracy")
    with user_errors(ValueError):
        return InterventionPlan(
            op,
            sites=named,
            layers=layers,
            window=default.window if window is None else _window(window),
            tokens=groups,
            heads=heads,
            options=OPTIONS[op](**dict(options or {})),
            corruption=corruption or Corruption(),
            metrics=tuple(sorted(given, key=list(metrics).index)) or fallback,
            engine=engine,
        )


def _window(text: str) -> int | WindowKind:
    for span in get_args(WindowKind):
        if text == span:
            return span  # type: ignore[no-any-return]
    if not text.lstrip("-").isdigit():
        raise UserError(
            f"window must be an odd number of layers or one of {', '.join(get_args(WindowKind))}, got {text!r}. "
            "It is centred on each layer."
        )
    return int(text)
