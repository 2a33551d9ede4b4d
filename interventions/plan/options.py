"""What each operation needs besides where it acts: small frozen records with their checks.

``OPTIONS["ablate"]`` is the record of that operation; a ``InterventionPlan`` holds one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from tasks.errors import UserError

Op = Literal["patch", "ablate", "knockout", "skip", "steer", "attribute", "transplant"]
OPS: tuple[Op, ...] = get_args(Op)


@dataclass(frozen=True)
class Corruption:
    """How the corrupt run is made from the clean one.

    Args:
        kind: ``"pair"``: the other picture of a pair that differs in one attribute; ``"blank"``: CLIP's mean
            colour everywhere; ``"noise"``: Gaussian noise on the image embeddings (what leaves the projector).
        scale: The noise's standard deviation, in standard deviations of the data set's image embeddings.
        seeds: One draw of the noise each; results are averaged over them.
    """

    kind: Literal["pair", "blank", "noise"] = "pair"
    scale: float = 3.0
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        """Refuses values that mean nothing."""
        check_among("corruption", self.kind, ("pair", "blank", "noise"))
        check_number("scale", self.scale, positive=True)
        if not (isinstance(self.seeds, tuple) and self.seeds and all(is_whole(s) and s >= 0 for s in self.seeds)):
            raise UserError(f"seeds must be integers >= 0, at least one, got {self.seeds!r}. Each is a draw of noise.")


@dataclass(frozen=True)
class PatchOptions:
    """Which run gets the other's activations.

    Args:
        direction: ``"denoise"`` puts clean activations into the corrupt run, ``"noise"`` corrupt ones into the
            clean run.
    """

    direction: Literal["denoise", "noise"] = "denoise"

    def __post_init__(self) -> None:
        """Refuses another direction."""
        check_among("direction", self.direction, ("denoise", "noise"))


@dataclass(frozen=True)
class AblateOptions:
    """What takes the place of an activation.

    Args:
        kind: ``"zero"``; ``"mean"``: its mean over the data set and the positions of the group; ``"resample"``: its
            value in the run that shows another example's picture under the same prompt.
        seed: Says which other example.
    """

    kind: Literal["zero", "mean", "resample"] = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses another kind."""
        check_among("ablation", self.kind, ("zero", "mean", "resample"))
        if not is_whole(self.seed) or self.seed < 0:
            raise UserError(f"seed must be an integer >= 0, got {self.seed!r}. Any will do.")


@dataclass(frozen=True)
class SkipOptions:
    """What skipped positions still do.

    Args:
        visible: Whether they serve as keys and values in the layers they skip. Without it nothing sees them there: with
            the window ``"up-to"``, image tokens enter the language model only behind layer k.
    """

    visible: bool = True

    def __post_init__(self) -> None:
        """Refuses what is no bool."""
        if not isinstance(self.visible, bool):
            raise UserError(f"visible must be true or false, got {self.visible!r}. It says what others may see.")


@dataclass(frozen=True)
class SteerOptions:
    """What is added.

    Args:
        direction: Its name in ``DatasetStatistics.directions``; it is brought to length 1.
        alpha: Its length; negative to steer away.
        unit: ``"norm"``: in mean norms of the activation at the site and group, over the data set; ``"absolute"``.
    """

    direction: str = "direction"
    alpha: float = 1.0
    unit: Literal["norm", "absolute"] = "norm"

    def __post_init__(self) -> None:
        """Refuses what cannot be added."""
        if not isinstance(self.direction, str) or not self.direction:
            raise UserError(f"direction must be a name, got {self.direction!r}. load_directions lists those of a file.")
        check_number("alpha", self.alpha, positive=False)
        check_among("unit", self.unit, ("norm", "absolute"))


@dataclass(frozen=True)
class TransplantOptions:
    """Which weights come from where.

    Args:
        donor: The checkpoint, as ``models.load`` takes it.
        head: Whether the final norm and the head come along.
        projector: Whether the projector comes along.
    """

    donor: str = "smol"
    head: bool = False
    projector: bool = False

    def __post_init__(self) -> None:
        """Refuses what names no checkpoint."""
        if not isinstance(self.donor, str) or not self.donor:
            raise UserError(f"donor must be the name of a checkpoint, got {self.donor!r}. For example smol.")
        for name in ("head", "projector"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name} must be true or false, got {getattr(self, name)!r}. It says what comes along.")


@dataclass(frozen=True)
class NoOptions:
    """For operations that need no more than where."""


Options = PatchOptions | AblateOptions | SkipOptions | SteerOptions | TransplantOptions | NoOptions
# What each operation takes.
OPTIONS: dict[Op, type[Options]] = {
    "patch": PatchOptions,
    "attribute": PatchOptions,
    "ablate": AblateOptions,
    "knockout": NoOptions,
    "skip": SkipOptions,
    "steer": SteerOptions,
    "transplant": TransplantOptions,
}


def is_whole(value: object) -> bool:
    """Whether it is an integer, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_number(name: str, value: object, *, positive: bool) -> None:
    """Passes if ``value`` is a finite number.

    Raises:
        ValueError: If it is not.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    if not good or (positive and value <= 0):  # type: ignore[operator]
        raise UserError(f"{name} must be a{' positive' if positive else ''} finite number, got {value!r}. Change it.")


def check_among(name: str, value: object, known: tuple[str, ...]) -> None:
    """Passes if ``value`` is one of ``known``.

    Raises:
        ValueError: If it is not.
    """
    if value not in known:
        raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}. Pick one of them.")


def check_keys(name: str, data: Mapping[str, Any], kind: Any) -> None:
    """Passes if every key is a field of the dataclass ``kind``.

    Raises:
        ValueError: Naming one that is not.
    """
    known = [f.name for f in fields(kind)]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise UserError(f"{name} must have no keys but {', '.join(known) or 'none'}, got {unknown[0]!r}. Check it.")
