"""Settings of a probe sweep. The fields are the options of ``probe-sweep``; see ``records.options``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from records.manifest import RunKind
from records.options import (
    ConfigFile,
    DryRun,
    DtypeName,
    FollowLinks,
    Images,
    ModelOptions,
    OrDefault,
    Out,
    Overwrite,
    Preprocess,
    Repeated,
    Seed,
    SkipBad,
    named,
    settings_of,
    slug,
)
from tasks.errors import UserError

RUN = RunKind(
    "probe-sweep",
    writes=(
        "activations",
        "random_init",
        "examples.parquet",
        "skipped.csv",
        "probes.safetensors",
        "directions.safetensors",
        "maps",
        "maps.json",
        "maps.parquet",
    ),
)
Tokens = Literal["auto", "image", "object", "caption", "question", "last", "text", "all"]
TEXT_TOKENS: tuple[Tokens, ...] = ("caption", "question", "last", "text", "all")  # choices that include text tokens
Pool = Literal["mean", "max", "box", "last", "none"]
Probe = Literal["logistic", "ridge", "mass-mean", "mlp"]  # as in `probes.linear.registry`, which imports torch


@dataclass(frozen=True)
class DataOptions:
    """The examples."""

    spec: Annotated[str, named("data")] = "scenes"
    """`scenes`, a JSONL or Parquet file of your own, or `benchmark:gqa=FOLDER`."""
    images: Images = None
    follow_links: FollowLinks = False
    split: OrDefault[str] = None
    """Examples to fit and cross-validate probes on. [default: test for scenes, else all]"""
    transfer: OrDefault[str] = None
    """Examples to score only; `none` for none. [default: unseen for scenes, else none]"""
    limit: OrDefault[int] = None
    """Largest number of examples to fit on. [default: 200 for scenes, else all]"""
    transfer_limit: OrDefault[int] = None
    """Largest number of examples to score only. [default: a third of limit for scenes, else all]"""
    captions: OrDefault[Path] = None
    """File of captions, joined by picture: COCO's or Karpathy's JSON, Flickr30k's `.token`, or a CSV. [default: the
    columns caption or captions of the data]"""
    skip_bad: SkipBad = False
    preprocess: Preprocess = "pad"


@dataclass(frozen=True)
class SiteOptions:
    """The activations to probe."""

    specs: Annotated[Repeated[str], named("site")] = ()
    """Activation: `resid_post`, `vision:resid_post`, `projector:out`, `blocks.12.hook_mlp_out`. [default: resid_post of
    both towers, the projector's stages, the language model's input]"""
    layers: OrDefault[str] = None
    """Layers for sites without one, such as `0-31` or `3,5,9`. [default: all]"""
    tokens: Tokens = "auto"
    """Token positions. `auto` takes the patches of the focus box for labels of one object, if there are boxes, and all
    image tokens for other labels; for captions all caption tokens."""
    pool: Pool = "mean"
    """How the tokens become one activation; `last` takes the last of them, `none` only with `--tokens last`."""
    stored_as: Annotated[OrDefault[DtypeName], named("store-dtype")] = None
    """Floating-point type of stored activations. [default: the model's]"""


@dataclass(frozen=True)
class ProbeOptions:
    """The labels and the probes."""

    targets: Annotated[Repeated[str], named("target")] = ()
    """Label to predict. [default for scenes: kind, category, colour, place, count]"""
    probe: Probe = "logistic"
    """Kind of probe; `logistic` becomes ridge regression for continuous labels."""
    folds: int = 5
    """Folds of the grouped, stratified cross-validation."""
    controls: bool = True
    """Run the controls: shuffled labels, a control task, raw pixels, and a randomly initialised model."""
    maps: OrDefault[int] = None
    """Examples for maps, on which probes read every patch; 0 for none. [default: 12, or fewer if there are few
    examples]"""


_OF_CAPTURE = (
    "model", "revision", "dtype", "attn", "data", "images", "split", "transfer", "limit", "transfer-limit", "captions",
    "skip-bad", "preprocess", "pool", "store-dtype", "batch-size", "maps",
)  # fmt: skip


@dataclass(frozen=True)
class SweepConfig:
    """Fit linear probes layer by layer. The results depend only on the settings.

    Example:
        >>> config = SweepConfig(data=DataOptions(limit=50), probing=ProbeOptions(targets=("colour",)))
        >>> str(config.folder), config.settings["limit"]
        ('runs/smol-scenes', 50)
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    sites: SiteOptions = field(default_factory=SiteOptions)
    probing: ProbeOptions = field(default_factory=ProbeOptions)
    seed: Seed = 0
    batch_size: int = 16
    """Examples in a batch."""
    activations: OrDefault[Path] = None
    """Run of `capture-activations` to read instead of running a model; its model, data and pooling hold."""
    condition: OrDefault[Literal["image", "caption"]] = None
    """With stored activations: those of the question about the picture, or about its caption. [default: image]"""
    labels: OrDefault[Path] = None
    """With stored activations: CSV or Parquet file with the column `id` and labels to use as targets."""
    out: Out = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
    config: ConfigFile = None

    def check_given(self, given: set[str]) -> None:
        """Check that the options that were given, by name, go together.

        Raises:
            UserError: If an option of a capture is given with stored activations, or the other way round.
        """
        of_other = ("condition", "labels") if self.activations is None else _OF_CAPTURE
        wrong = next((name for name in of_other if name in given), None)
        if wrong is not None and self.activations is None:
            raise UserError(f"{wrong} must go with --activations, got none. Capture activations first.")
        if wrong is not None:
            raise UserError(
                f"{wrong} must be left out with --activations, got one. The capture {str(self.activations)!r} "
                "decides it; capture again to change it."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The options that affect the results, as the manifest stores them."""
        return settings_of(self)

    @property
    def fit_device(self) -> str:
        """The device on which probes are fitted: the model's if it is a GPU of CUDA, else the CPU."""
        return self.model.device if self.model.device.startswith("cuda") else "cpu"

    @property
    def folder(self) -> Path:
        """The run directory: ``out``, or a folder in ``runs/`` named after model and data."""
        if self.activations is not None and self.out is None:
            return Path("runs") / f"{slug(str(self.activations))}-probes"
        return self.out or Path("runs") / f"{slug(self.model.name)}-{slug(self.data.spec)}"
