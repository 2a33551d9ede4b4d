"""Settings of ``transfer-sweep``. The fields are its options; see ``records.options``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from records.manifest import RunKind
from records.options import ConfigFile, DryRun, OrDefault, Out, Overwrite, Repeated, Seed, named, settings_of, slug
from tasks.errors import UserError

TRANSFER = RunKind("transfer-sweep", writes=("examples.parquet", "parts"))


@dataclass(frozen=True)
class TransferConfig:
    """Read probes of captions on pictures and the reverse. The results depend only on the settings.

    Example:
        >>> config = TransferConfig(activations=Path("runs/activations-smol-scenes"), targets=("count",))
        >>> str(config.folder), config.settings["folds"]
        ('runs/transfer-activations-smol-scenes', 5)
    """

    activations: OrDefault[Path] = None
    """Run of `capture-activations --condition both` to read; it must be given."""
    targets: Annotated[Repeated[str], named("target")] = ()
    """Label to predict. [default for scenes: count]"""
    labels: OrDefault[Path] = None
    """CSV or Parquet file with the column `id` and labels to use as targets. [default: those of the data]"""
    site: str = "resid_post"
    """Activation of the language model, on both sides."""
    layers: OrDefault[str] = None
    """Layers, such as `0-31` or `3,5,9`. [default: all that are stored]"""
    image_tokens: Literal["auto", "image", "object", "question", "last", "text", "all"] = "auto"
    """Tokens of the question about the picture; `auto` is the focus box for labels of one object, else the picture."""
    caption_tokens: Literal["caption", "question", "last", "text", "all"] = "caption"
    """Tokens of the question about the caption."""
    standardise: Literal["own", "source"] = "own"
    """Mean and scale of the activations that a probe reads: `own` takes those of its condition and layer, `source`
    those that the probe was fitted with."""
    probe: Literal["logistic", "ridge"] = "logistic"
    """Kind of probe; `logistic` becomes ridge regression for continuous labels."""
    folds: int = 5
    """Folds of the grouped, stratified cross-validation."""
    device: str = "cpu"
    """Device on which probes are fitted: `cpu` or `cuda`."""
    seed: Seed = 0
    out: Out = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
    config: ConfigFile = None

    def __post_init__(self) -> None:
        """Check the ranges of numbers."""
        for name, value, lowest in (("folds", self.folds, 2), ("seed", self.seed, 0)):
            if value < lowest:
                raise UserError(f"{name} must be >= {lowest}, got {value}.")

    @property
    def run(self) -> Path:
        """The run of stored activations; ``UserError`` if it is not given."""
        if self.activations is None:
            raise UserError(
                "activations must be the folder of a capture, got none. Run capture-activations --condition both."
            )
        return self.activations

    @property
    def settings(self) -> dict[str, Any]:
        """The options that affect the results, as the manifest stores them."""
        return settings_of(self)

    @property
    def folder(self) -> Path:
        """The run directory: ``out``, or a folder in ``runs/`` named after the capture."""
        return self.out or Path("runs") / f"transfer-{slug(str(self.run))}"
