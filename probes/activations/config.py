"""Settings of a capture. The fields are the options of ``capture-activations``; see ``records.options``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from probes.config import DataOptions
from records.manifest import RunKind
from records.options import (
    ConfigFile,
    DryRun,
    DtypeName,
    Flag,
    ModelOptions,
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

CAPTURE = RunKind(
    "capture-activations",
    writes=(
        "activations", "caption_activations", "random_init", "caption_random_init", "examples.parquet", "skipped.csv",
    ),
)  # fmt: skip
Condition = Literal["image", "caption"]
Group = Literal["image", "object", "caption", "question", "last", "text", "all"]
OF_PICTURE: tuple[Group, ...] = ("image", "object")  # groups that the vision tower and the projector have too
GROUPS_OF: dict[Condition, tuple[Group, ...]] = {
    "image": ("image", "object", "question", "last", "text", "all"),
    "caption": ("caption", "question", "last", "text", "all"),
}
DEFAULT_TOKENS: dict[Condition, tuple[Group, ...]] = {"image": ("image", "last"), "caption": ("caption", "last")}


@dataclass(frozen=True)
class CapturedSites:
    """The activations to store."""

    specs: Annotated[Repeated[str], named("site")] = ()
    """Activation: `resid_post`, `vision:resid_post`, `projector:out`, `blocks.12.hook_mlp_out`. [default: resid_post of
    both towers, the projector's stages, the language model's input]"""
    layers: OrDefault[str] = None
    """Layers for sites without one, such as `0-31` or `3,5,9`. [default: all]"""
    tokens: Repeated[Group] = ()
    """Token group to store; may be repeated. [default: image, caption and last]"""
    pool: Literal["mean", "max", "box", "last", "none"] = "mean"
    """How the tokens of a group become one activation; `last` takes the last of them, `none` keeps each."""
    stored_as: Annotated[OrDefault[DtypeName], named("store-dtype")] = None
    """Floating-point type of stored activations. [default: the model's]"""


@dataclass(frozen=True)
class CaptureConfig:
    """Store activations once, to read them many times. The stored bytes depend only on the settings.

    Example:
        >>> config = CaptureConfig(data=DataOptions(limit=50), condition="both")
        >>> str(config.folder), config.tokens_of["caption"]
        ('runs/activations-smol-scenes', ('caption', 'last'))
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    condition: Literal["image", "caption", "both"] = "image"
    """What the question is about: the picture, its caption as text, or both in turn."""
    sites: CapturedSites = field(default_factory=CapturedSites)
    random_init: Flag = False
    """Also store the activations of a randomly initialised model for the examples to fit on, as a control."""
    seed: Seed = 0
    batch_size: int = 16
    """Examples in a batch."""
    out: Out = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
    config: ConfigFile = None

    def __post_init__(self) -> None:
        """Check the ranges of numbers, and that every token group belongs to a condition."""
        for name, value, lowest in (("batch-size", self.batch_size, 1), ("seed", self.seed, 0)):
            if value < lowest:
                raise UserError(f"{name} must be >= {lowest}, got {value}.")
        found = {group for groups in self.tokens_of.values() for group in groups}
        for group in self.sites.tokens:
            if group not in found:
                raise UserError(
                    f"tokens must exist in the condition {self.condition!r}, got {group!r}. "
                    f"It has: {', '.join(dict.fromkeys(g for c in self.conditions for g in GROUPS_OF[c]))}."
                )
        for condition, groups in self.tokens_of.items():
            if not groups:
                raise UserError(
                    f"tokens must name a group of the condition {condition!r}, got {', '.join(self.sites.tokens)}. "
                    f"It has: {', '.join(GROUPS_OF[condition])}."
                )
        if self.sites.pool == "box" and set(self.sites.tokens) != {"image"}:
            raise UserError(
                f"pool box must go with tokens 'image' alone, got {', '.join(self.sites.tokens) or 'the default'}. "
                "A box holds patches; --tokens object stores them beside other groups."
            )

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions to capture, in their order."""
        return ("image", "caption") if self.condition == "both" else (self.condition,)

    @property
    def tokens_of(self) -> dict[Condition, tuple[Group, ...]]:
        """The token groups of each condition."""
        asked = tuple(dict.fromkeys(self.sites.tokens))
        return {
            c: tuple(group for group in asked if group in GROUPS_OF[c]) if asked else DEFAULT_TOKENS[c]
            for c in self.conditions
        }

    @property
    def settings(self) -> dict[str, Any]:
        """The options that affect the results, as the manifest stores them."""
        return settings_of(self)

    @property
    def folder(self) -> Path:
        """The run directory: ``out``, or a folder in ``runs/`` named after model and data."""
        return self.out or Path("runs") / f"activations-{slug(self.model.name)}-{slug(self.data.spec)}"
