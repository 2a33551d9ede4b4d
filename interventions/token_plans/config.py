"""The settings of ``inference-cost``. Their fields are its options; see ``records.options``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from records.manifest import RunKind
from records.options import (
    MOST_NEW_TOKENS,
    ConfigFile,
    DryRun,
    FollowLinks,
    Images,
    ModelOptions,
    OrDefault,
    Out,
    Overwrite,
    Preprocess,
    Seed,
    check_ranges,
    named,
    settings_of,
    slug,
)

RUN = RunKind("inference-cost", writes=("batches", "answers.parquet", "times.parquet"))
DEFAULT_LIMIT = 140  # questions of each split of scenes: 20 scenes with 7 questions


@dataclass(frozen=True)
class QuestionOptions:
    """The questions."""

    spec: Annotated[str, named("data")] = "scenes"
    """`scenes`, a JSONL or Parquet file with the columns image, question and answer, or `benchmark:gqa=FOLDER`."""
    images: Images = None
    follow_links: FollowLinks = False
    split: OrDefault[str] = None
    """Splits, joined by `+`; each gets rows of its own. [default: test+unseen for scenes, else all rows]"""
    limit: OrDefault[int] = None
    """Largest number of questions of each split. [default: 140 for scenes, else all]"""
    preprocess: Preprocess = "pad"


@dataclass(frozen=True)
class InferenceConfig:
    """Measure what token plans cost and keep. The scores depend only on the settings.

    Example:
        >>> config = InferenceConfig(plans="all,leave@16")
        >>> str(config.folder), config.settings["plans"]
        ('runs/inference-smol-scenes', 'all,leave@16')
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    questions: QuestionOptions = field(default_factory=QuestionOptions)
    plans: OrDefault[str] = None
    """Token plans, separated by commas: `all`, `leave@16`, `enter@6`, `freeze:14-31`, `hide:0-4+25-31`,
    `keep:0.5@2:attention`, `keep:0.5@2:random@0`, `keep:0.5@2:uniform`, `6-16:hide`, or `auto:RUN` with a run of
    `patch-sweep --op skip` or `knockout`. `all` is added. [default: one of each kind]"""
    new_tokens: int = 16
    """Largest number of tokens of an answer."""
    rounds: int = 5
    """Timed runs of every plan on one batch, in turn; 0 for no times."""
    batch_size: int = 8
    """Questions that run together."""
    seed: Seed = 0
    out: Out = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
    config: ConfigFile = None

    def __post_init__(self) -> None:
        """Check the ranges of numbers."""
        check_ranges(
            ("new-tokens", self.new_tokens, 1, MOST_NEW_TOKENS), ("rounds", self.rounds, 0, 10**6),
            ("batch-size", self.batch_size, 1, 2**20), ("seed", self.seed, 0, 2**63 - 1),
        )  # fmt: skip

    @property
    def settings(self) -> dict[str, Any]:
        """The options that affect the results, as the manifest stores them."""
        return settings_of(self)

    @property
    def folder(self) -> Path:
        """The run directory: ``out``, or a folder in ``runs/`` named after model and data."""
        return self.out or Path("runs") / f"inference-{slug(self.model.name)}-{slug(self.questions.spec)}"
