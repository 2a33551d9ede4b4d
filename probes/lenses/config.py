"""Settings of ``lens-sweep`` and ``lens-sweep train``. Their fields are the options; see ``records.options``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from records.manifest import RunKind
from records.options import (
    ConfigFile,
    DryRun,
    FollowLinks,
    Images,
    ModelOptions,
    OrDefault,
    Out,
    Overwrite,
    Preprocess,
    Repeated,
    Seed,
    named,
    settings_of,
    slug,
)
from tasks.errors import UserError

RUN = RunKind("lens-sweep", writes=("shards", "tokens.parquet", "scores.parquet", "examples.json", "pictures"))
TRAIN = RunKind(
    "lens-sweep train",
    writes=("params.safetensors", "config.json", "index.safetensors", "lens.pt", "checkpoint.safetensors", "shards"),
)
SCENES = "scenes"
SCENE_LIMIT = 40  # scenes of each split: with the logit lens about ten minutes for smol on a laptop
SHOWN = 12


@dataclass(frozen=True)
class DataOptions:
    """The examples; each needs a picture, and a box in focus for scores inside and outside."""

    spec: Annotated[str, named("data")] = SCENES
    """`scenes`, or a JSONL or Parquet file of your own."""
    images: Images = None
    follow_links: FollowLinks = False
    split: OrDefault[str] = None
    """Splits, joined by `+`, each with rows of its own. [default: test+unseen for scenes, else all rows]"""
    limit: OrDefault[int] = None
    """Largest number of examples of each split. [default: 40 for scenes, else all]"""
    preprocess: Preprocess = "pad"


@dataclass(frozen=True)
class CorpusOptions:
    """The text of a latent lens."""

    corpus: OrDefault[Path] = None
    """Text file; each paragraph is one text. [default for scenes: captions of training scenes and the passage that
    ships with smol]"""
    corpus_tokens: int = 2048
    """Largest number of tokens of the index at each layer."""

    def __post_init__(self) -> None:
        """Check the range."""
        _check(("corpus-tokens", self.corpus_tokens, 1))


@dataclass(frozen=True)
class LensConfig:
    """Show, layer by layer, which words lenses read at image tokens.

    Example:
        >>> config = LensConfig(lenses=("logit", "latent"))
        >>> str(config.folder), config.settings["lens"]
        ('runs/lens-smol-scenes', ['logit', 'latent'])
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    lenses: Annotated[Repeated[str], named("lens")] = ()
    """`logit`, `tuned:FOLDER`, `jacobian:FILE`, `latent` or `latent:FOLDER`. [default: logit]"""
    layers: OrDefault[str] = None
    """Layers, such as `0-31` or `3,5,9`; the language model's input comes with them. [default: all]"""
    text: CorpusOptions = field(default_factory=CorpusOptions)
    target: OrDefault[str] = None
    """Label that holds the word of the object in focus. [default: kind for scenes, else the name of the box]"""
    words: OrDefault[Path] = None
    """JSON file of synonyms: word -> list of words. [default: those of the embedded nouns]"""
    controls: bool = True
    """Score another example's words, words of like frequency, and a randomly initialised model too."""
    shown: int = SHOWN
    """Examples whose words are kept for the report; 0 for none."""
    top_k: int = 5
    """Words kept for each patch and layer of these."""
    seed: Seed = 0
    out: Out = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
    config: ConfigFile = None

    def __post_init__(self) -> None:
        """Check the ranges of numbers and the names of lenses."""
        _check(("shown", self.shown, 0), ("top-k", self.top_k, 1), ("seed", self.seed, 0))
        if self.top_k > 50:
            raise UserError(f"top-k must be at most 50, got {self.top_k}. These words are kept for every patch.")
        for spec in self.lens_specs:
            kind, _, path = spec.partition(":")
            known = kind in ("logit", "latent", "tuned", "jacobian")
            if not known or (kind == "logit" and path) or (kind in ("tuned", "jacobian") and not path):
                raise UserError(
                    f"lens must be logit, tuned:FOLDER, jacobian:FILE, latent or latent:FOLDER, got {spec!r}."
                )
        if len(set(self.lens_specs)) < len(self.lens_specs):
            raise UserError(f"lens must be named once each, got {', '.join(self.lens_specs)}.")

    @property
    def lens_specs(self) -> tuple[str, ...]:
        """The lenses as text."""
        return self.lenses or ("logit",)

    @property
    def settings(self) -> dict[str, Any]:
        """The options that affect the results, as the manifest stores them."""
        return settings_of(self)

    @property
    def folder(self) -> Path:
        """The run directory: ``out``, or a folder in ``runs/`` named after model and data."""
        return self.out or Path("runs") / f"lens-{slug(self.model.name)}-{slug(self.data.spec)}"


@dataclass(frozen=True)
class TrainDataOptions:
    """The examples to train on, and those held out."""

    spec: Annotated[str, named("data")] = SCENES
    """`scenes`, or a JSONL or Parquet file of your own."""
    images: Images = None
    follow_links: FollowLinks = False
    split: OrDefault[str] = None
    """Split to train on. [default: train for scenes, else all rows]"""
    limit: OrDefault[int] = None
    """Largest number of examples to train on. [default: 64 for scenes, else all]"""
    eval_split: OrDefault[str] = None
    """Split that is held out. [default: test for scenes; needed for your own data]"""
    eval_limit: int = 32
    """Largest number of held-out examples."""
    preprocess: Preprocess = "pad"


@dataclass(frozen=True)
class TrainConfig:
    """Make a lens: train a tuned lens, average Jacobians, or index a text for a latent lens.

    Example:
        >>> str(TrainConfig(kind="jacobian").folder)
        'runs/lens-jacobian-image-smol'
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    kind: Literal["tuned", "jacobian", "latent"] = "tuned"
    """The lens to make."""
    positions: OrDefault[Literal["text", "image"]] = None
    """Positions that the lens is made for. [default: text for tuned, image for jacobian]"""
    data: TrainDataOptions = field(default_factory=TrainDataOptions)
    text: CorpusOptions = field(default_factory=CorpusOptions)
    layers: OrDefault[str] = None
    """Layers of a Jacobian or latent lens. [default: all but the last; eight for latent]"""
    steps: int = 250
    """Steps of a tuned lens."""
    batch_size: int = 8
    """Examples of a step."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimizer of a tuned lens."""
    lr: OrDefault[float] = None
    """Rate of the first step. [default: 0.1 for sgd, 0.001 for adam]"""
    seed: Seed = 0
    out: Out = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
    config: ConfigFile = None

    def __post_init__(self) -> None:
        """Check the ranges of numbers."""
        _check(
            ("steps", self.steps, 1), ("batch-size", self.batch_size, 1), ("seed", self.seed, 0),
            ("eval-limit", self.data.eval_limit, 1),
        )  # fmt: skip
        if self.lr is not None and self.lr <= 0:
            raise UserError(f"lr must be positive, got {self.lr}.")
        if self.kind == "tuned" and self.layers is not None:
            raise UserError(f"layers must be left out for a tuned lens, got {self.layers!r}. It has all of them.")

    @property
    def read_at(self) -> Literal["text", "image"]:
        """The positions that the lens is made for."""
        return self.positions or ("image" if self.kind == "jacobian" else "text")

    @property
    def settings(self) -> dict[str, Any]:
        """The options that affect the results, as the manifest stores them."""
        return settings_of(self)

    @property
    def folder(self) -> Path:
        """The run directory: ``out``, or a folder in ``runs/`` named after lens and model."""
        kind = self.kind if self.kind == "latent" else f"{self.kind}-{self.read_at}"
        return self.out or Path("runs") / f"lens-{kind}-{slug(self.model.name)}"


def _check(*ranges: tuple[str, int, int]) -> None:
    for name, value, lowest in ranges:
        if value < lowest:
            raise UserError(f"{name} must be >= {lowest}, got {value}.")
