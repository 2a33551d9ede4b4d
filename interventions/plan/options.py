"""The options of each operation, with their checks and defaults.

``OPERATIONS["ablate"].options`` is the options class of ablation; an ``InterventionPlan`` holds an instance. The fields
are also options of ``patch-sweep`` (see ``records.options``), so this file imports no torch. A new operation needs an
options class and an entry of ``OPERATIONS`` here, and a file in ``interventions.operations``.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args

from records.options import Flag, NotAnOption, named
from tasks.errors import UserError

Op = Literal["patch", "ablate", "knockout", "skip", "steer", "attribute", "transplant"]
OPS: tuple[Op, ...] = get_args(Op)
Direction = Literal["denoise", "noise"]
Metric = Literal["logit_difference", "log_prob", "probability", "kl", "accuracy", "cider"]
CIDER: Metric = "cider"  # of captions that are generated; the others are read from logits
METRICS: tuple[Metric, ...] = get_args(Metric)
WindowKind = Literal["up-to", "onward", "together"]
WINDOW_KINDS: tuple[WindowKind, ...] = get_args(WindowKind)
FLOW = "->"  # image->question: queries at the question do not attend to keys at the image


@dataclass(frozen=True)
class Corruption:
    """How the corrupt run is made from the clean run."""

    kind: Annotated[Literal["pair", "blank", "noise"], named("corruption")] = "pair"
    """The corrupt run: the pair's other picture, a blank picture, or noise on the image embeddings."""
    scale: Annotated[float, named("noise-scale")] = 3.0
    """Standard deviation of the noise, in standard deviations of the embeddings."""
    seeds: NotAnOption[tuple[int, ...]] = (0,)
    """Seeds of the noise; results are means over them."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_among("corruption", self.kind, ("pair", "blank", "noise"))
        check_number("scale", self.scale, positive=True)
        if not (isinstance(self.seeds, tuple) and self.seeds and all(is_whole(s) and s >= 0 for s in self.seeds)):
            raise UserError(f"seeds must be integers >= 0, at least one, got {self.seeds!r}.")


@dataclass(frozen=True)
class PatchOptions:
    """Options of ``patch`` and ``attribute``."""

    direction: Direction = "denoise"
    """`denoise` puts clean values into the corrupt run, `noise` corrupt values into the clean run."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_among("direction", self.direction, get_args(Direction))


@dataclass(frozen=True)
class AblateOptions:
    """Options of ``ablate``."""

    kind: Annotated[Literal["zero", "mean", "resample"], named("ablation")] = "mean"
    """Zero, the mean over data set and positions of the group, or the value with another example's picture."""
    seed: NotAnOption[int] = 0
    """Seed of the choice of the other example."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_among("ablation", self.kind, ("zero", "mean", "resample"))
        if not is_whole(self.seed) or self.seed < 0:
            raise UserError(f"seed must be an integer >= 0, got {self.seed!r}.")


@dataclass(frozen=True)
class SkipOptions:
    """Options of ``skip``."""

    hidden: Flag = False
    """No other position attends to the skipped positions in the skipped layers."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_bools(self, "hidden")


@dataclass(frozen=True)
class SteerOptions:
    """Options of ``steer``."""

    direction: Annotated[str, named("steer-name")] = "direction"
    """Name of the direction in the file; it is scaled to unit length."""
    alpha: float = 1.0
    """Length of the added vector, below 0 to steer away."""
    unit: Literal["norm", "absolute"] = "norm"
    """Unit of alpha: the activation's mean norm over data set and group, or the activation's own unit."""

    def __post_init__(self) -> None:
        """Check the values."""
        if not isinstance(self.direction, str) or not self.direction:
            raise UserError(f"direction must be a name, got {self.direction!r}. load_directions lists those of a file.")
        check_number("alpha", self.alpha, positive=False)
        check_among("unit", self.unit, ("norm", "absolute"))


@dataclass(frozen=True)
class TransplantOptions:
    """Options of ``transplant``."""

    donor: str = "smol"
    """Checkpoint that the layers come from."""
    head: Annotated[Flag, named("with-head")] = False
    """Exchange the final norm and the head too."""
    projector: Annotated[Flag, named("with-projector")] = False
    """Exchange the projector too."""

    def __post_init__(self) -> None:
        """Check the values."""
        if not isinstance(self.donor, str) or not self.donor:
            raise UserError(f"donor must be the name of a checkpoint, got {self.donor!r}. For example smol.")
        check_bools(self, "head", "projector")


@dataclass(frozen=True)
class NoOptions:
    """For operations without options."""


Options = PatchOptions | AblateOptions | SkipOptions | SteerOptions | TransplantOptions | NoOptions


class Operation(NamedTuple):
    """The options class of an operation, and its default sites, token groups and window in a sweep.

    ``whole_blocks`` is the site of its cells if it acts on entire blocks; None if the plan chooses sites. ``by_head``
    is True if it can be limited to some heads.
    """

    options: type[Options]
    sites: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    window: int | WindowKind = 1
    whole_blocks: str | None = None
    by_head: bool = True


_GROUPS = ("image", "question", "last")
_FLOWS = (f"image{FLOW}question", f"question{FLOW}last", f"image{FLOW}last")
OPERATIONS: dict[Op, Operation] = {
    "patch": Operation(PatchOptions, ("resid_pre",), _GROUPS),
    "attribute": Operation(PatchOptions, ("resid_pre",), _GROUPS),
    "ablate": Operation(AblateOptions, ("attn_out", "mlp_out"), _GROUPS),
    # A window of one layer has little effect, because neighbouring blocks carry the same information.
    "knockout": Operation(NoOptions, (), _FLOWS, 5, "pattern"),
    "skip": Operation(SkipOptions, (), ("image",), "onward", "resid_post", by_head=False),
    "steer": Operation(SteerOptions, ("resid_post",), ("image",), by_head=False),
    "transplant": Operation(TransplantOptions, (), (), "up-to", "resid_post", by_head=False),
}


def is_whole(value: object) -> bool:
    """True for an integer that is not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_number(name: str, value: object, *, positive: bool) -> None:
    """Check that ``value`` is a finite number; raise ``UserError`` if not."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    if not good or (positive and value <= 0):  # type: ignore[operator]
        raise UserError(f"{name} must be a{' positive' if positive else ''} finite number, got {value!r}.")


def check_bools(options: Any, *names: str) -> None:
    """Check that some attributes are bools; raise ``UserError`` if not."""
    for name in names:
        if not isinstance(getattr(options, name), bool):
            raise UserError(f"{name} must be true or false, got {getattr(options, name)!r}.")


def check_among(name: str, value: object, known: tuple[str, ...]) -> None:
    """Check that ``value`` is one of ``known``; raise ``UserError`` if not."""
    if value not in known:
        raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}.")


def check_window(window: object) -> None:
    """Check that ``window`` is valid in a plan; raise ``UserError`` if not."""
    if window not in WINDOW_KINDS and not (isinstance(window, int) and is_whole(window) and window > 0 and window % 2):
        raise UserError(
            f"window must be an odd number of layers or one of {', '.join(WINDOW_KINDS)}, got {window!r}. "
            "It is centred on each layer."
        )
