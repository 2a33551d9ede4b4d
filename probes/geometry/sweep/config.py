"""The settings of ``geometry-sweep``. Their fields are its options; see ``records.options``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from records.manifest import RunKind
from records.options import (
    ConfigFile,
    DryRun,
    NumberList,
    OrDefault,
    Out,
    Overwrite,
    Repeated,
    Seed,
    named,
    settings_of,
    slug,
)
from tasks.errors import UserError

FINDINGS = "findings.csv"
_MAP = ("map.csv", "map.parquet")
RUN = RunKind("geometry-sweep", writes=("layers", FINDINGS, *_MAP), needs=(FINDINGS,), keeps=_MAP)


@dataclass(frozen=True)
class GeometryConfig:
    """Compare stored activations by layer: image with caption, or one run with another. The model does not run.

    Example:
        >>> config = GeometryConfig(Path("runs/smol-activations"), layers="0-3")
        >>> str(config.folder), config.rank
        ('runs/geometry-smol-activations', (16, 32))
    """

    activations: OrDefault[Path] = None
    """Run directory of `capture-activations` or `probe-sweep`. Without --against, its condition image is compared with
    its condition caption."""
    against: OrDefault[Path] = None
    """Another run on the same examples, such as the model before tuning. Equal conditions and tokens are compared."""
    random: OrDefault[Path] = None
    """A run of a randomly initialised model on the same examples. [default: the one stored in the run, if any]"""
    tokens: Repeated[str] = ()
    """Token group to compare, repeatable: `last`, `image=caption` (the group in a, the group in b), `sample:image` (one
    token of each example, drawn with the seed; needs --pool none). Groups without pooling are averaged. [default: all
    groups that both sides have, and image=caption]"""
    target: Repeated[str] = ()
    """Label of the examples, repeatable, for the overlap of neighbours with labels."""
    site: str = "resid_post"
    """Name of the activation in the blocks."""
    part: Literal["language_model", "vision_tower"] = "language_model"
    """The part of the model."""
    layers: str = "all"
    """Layers: `all`, or `0,4-6`."""
    rank: NumberList = (16, 32)
    """Neighbours n1 < n2 whose distances give the intrinsic dimension."""
    largest: int = 64
    """Largest neighbour of the scaling curve."""
    k: int = 30
    """Neighbours of the overlap."""
    mutual_k: int = 10
    """Neighbours of the mutual kNN."""
    limit: int = 2500
    """Largest number of examples; more are drawn down to it with the seed. Memory grows with its square."""
    draws: int = 40
    """Halves of the examples, drawn without replacement, for the intervals."""
    shuffles: int = 39
    """Shuffled pairings for the control."""
    layer_map: Annotated[bool, named("map")] = True
    """Compare every layer with every other."""
    device: str = "cpu"
    """`cpu`, `cuda` or `cuda:1`."""
    seed: Seed = 0
    out: Out = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
    config: ConfigFile = None

    def __post_init__(self) -> None:
        """Check the ranges of numbers."""
        for name, value, lowest in (
            ("k", self.k, 1), ("mutual-k", self.mutual_k, 1), ("largest", self.largest, 2), ("limit", self.limit, 8),
            ("draws", self.draws, 2), ("shuffles", self.shuffles, 19), ("seed", self.seed, 0),
        ):  # fmt: skip
            if value < lowest:
                raise UserError(f"{name} must be >= {lowest}, got {value}.")
        if len(self.rank) != 2 or not 1 <= self.rank[0] < self.rank[1]:
            shown = ",".join(map(str, self.rank)) or "none"
            raise UserError(f"rank must be two numbers n1,n2 with 1 <= n1 < n2, got {shown}. The default is 16,32.")

    @property
    def settings(self) -> dict[str, Any]:
        """The options that affect the results, as the manifest stores them."""
        return settings_of(self)

    @property
    def folder(self) -> Path:
        """The run directory: ``out``, or a folder in ``runs/`` named after the activations."""
        against = f"-{slug(str(self.against))}" if self.against else ""
        return self.out or Path("runs") / f"geometry-{slug(str(self.activations))}{against}"
