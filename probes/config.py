"""The settings of a probe sweep. Their fields are the options of ``probe-sweep``; see ``records.options``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from records.manifest import RunKind
from records.options import (
    ConfigFile,
    DryRun,
    DtypeName,
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
Tokens = Literal["auto", "image", "object", "question", "last", "all"]
TEXT_TOKENS: tuple[Tokens, ...] = ("question", "last", "all")  # those that are not image tokens alone
Pool = Literal["mean", "max", "box", "none"]
Probe = Literal["logistic", "ridge", "mass-mean", "mlp"]


@dataclass(frozen=True)
class DataOptions:
    """The examples."""

    spec: Annotated[str, named("data")] = "scenes"
    """`scenes`, or a JSONL or Parquet file of your own."""
    images: Images = None
    split: OrDefault[str] = None
    """Examples that probes are fitted and cross-validated on. [default: test for scenes, else all]"""
    transfer: OrDefault[str] = None
    """Examples that are only scored, never fitted on; `none` for none. [default: unseen for scenes, else none]"""
    limit: OrDefault[int] = None
    """At most so many examples to fit on. [default: 200 for scenes, else all]"""
    transfer_limit: OrDefault[int] = None
    """At most so many examples to score only. [default: a third of limit for scenes, else all]"""
    skip_bad: SkipBad = False
    preprocess: Preprocess = "pad"


@dataclass(frozen=True)
class SiteOptions:
    """The activations that are read."""

    specs: Annotated[Repeated[str], named("site")] = ()
    """Activation: `resid_post`, `vision:resid_post`, `projector:out`, `blocks.12.hook_mlp_out`. [default: resid_post of
    both towers, the projector's stages, the language model's input]"""
    layers: OrDefault[str] = None
    """Layers for sites without one, as `0-31` or `3,5,9`. [default: all]"""
    tokens: Tokens = "auto"
    """Token positions. `auto` reads labels of one object on the patches of its box, where there are boxes, and other
    labels on all image tokens."""
    pool: Pool = "mean"
    """How the tokens become one activation; `none` only with `--tokens last`."""
    stored_as: Annotated[OrDefault[DtypeName], named("store-dtype")] = None
    """Floating-point type of the activations on disk. [default: the model's]"""


@dataclass(frozen=True)
class ProbeOptions:
    """The labels and the probes."""

    targets: Annotated[Repeated[str], named("target")] = ()
    """Label to read. [default for scenes: kind, category, colour, place, count]"""
    probe: Probe = "logistic"
    """Kind of probe; `logistic` becomes ridge regression for continuous labels."""
    folds: int = 5
    """Folds of the grouped, stratified cross-validation."""
    controls: bool = True
    """Run the controls: shuffled labels, a control task, raw pixels, and a randomly initialised model."""
    maps: OrDefault[int] = None
    """Examples on which every patch is read by itself, for maps over the picture; 0 for none. [default: 12, or fewer
    if there are few examples]"""


@dataclass(frozen=True)
class SweepConfig:
    """Fit linear probes layer by layer. Equal settings but for the run directory's give equal results."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    sites: SiteOptions = field(default_factory=SiteOptions)
    probing: ProbeOptions = field(default_factory=ProbeOptions)
    seed: Seed = 0
    batch_size: int = 16
    """Rows that run together."""
    out: Out = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
    config: ConfigFile = None

    @property
    def settings(self) -> dict[str, Any]:
        """Every option that decides the results, as the manifest stores it."""
        return settings_of(self)

    @property
    def folder(self) -> Path:
        """The run directory: ``out``, or a folder in ``runs/`` named after model and data."""
        return self.out or Path("runs") / f"{slug(self.model.name)}-{slug(self.data.spec)}"
