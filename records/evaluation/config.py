"""The options of ``benchmark-eval`` and its sub-commands. See ``records.options``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro import conf

from records.manifest import RunKind
from records.options import (
    NOT_SETTINGS,
    ConfigFile,
    DryRun,
    Flag,
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

RUN = RunKind("benchmark-eval", writes=("parts", "answers", "uploads", "skipped.csv"))
# Neither changes an answer: the one is about speed, and labels are needed only for the scores.
_NO_SETTINGS = (*NOT_SETTINGS, "batch_size", "labels")


@dataclass(frozen=True)
class EvaluationConfig:
    """Answer the questions of benchmarks and score the answers. The answers depend only on the settings.

    Example:
        >>> EvaluationConfig(benchmarks=("pope=data/pope", "gqa=data/gqa")).folder.name
        'benchmarks-smol-pope-gqa'
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    benchmarks: Annotated[Repeated[str], named("benchmark")] = ()
    """A benchmark and the folder of its files: `pope=data/pope`. May be given several times."""
    questions: OrDefault[Path] = None
    """Question file, if one benchmark is given. [default: the official name in the benchmark's folder]"""
    images: Images = None
    labels: OrDefault[Path] = None
    """File or folder of the labels, if one benchmark is given. [default: the official name in the folder]"""
    follow_links: FollowLinks = False
    skip_bad: Annotated[
        Flag, conf.arg(help="Leave out questions whose picture is missing or broken, and list them in skipped.csv; the "
                            "score is then not the official one.")
    ] = False  # fmt: skip
    limit: OrDefault[int] = None
    """Only the first N questions of each benchmark. [default: all]"""
    token_plan: OrDefault[str] = None
    """Layers in which image tokens are computed, such as `leave@16`; see `inference-cost --help`. [default: the plan
    that the model was trained under, else all]"""
    new_tokens: OrDefault[int] = None
    """Largest number of tokens of an answer. [default: as in LLaVA's scripts, 128 or 1024]"""
    batch_size: int = 8
    """Questions that run together. The answers do not depend on it."""
    preprocess: Preprocess = "pad"
    seed: Seed = 0
    out: Out = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
    config: ConfigFile = None

    def __post_init__(self) -> None:
        """Check the ranges of numbers."""
        for name, value in (("limit", self.limit), ("new-tokens", self.new_tokens), ("batch-size", self.batch_size)):
            if value is not None and value < 1:
                raise UserError(f"{name} must be >= 1, got {value}.")
        if self.seed < 0:
            raise UserError(f"seed must be >= 0, got {self.seed}.")

    @property
    def settings(self) -> dict[str, Any]:
        """The options that affect the answers, as the manifest stores them."""
        return settings_of(self, without=_NO_SETTINGS)

    @property
    def folder(self) -> Path:
        """The run directory: ``out``, or a folder in ``runs/`` named after model and benchmarks."""
        names = "-".join(slug(text.partition("=")[0]) for text in self.benchmarks)
        return self.out or Path("runs") / f"benchmarks-{slug(self.model.name)}-{names}"


@dataclass(frozen=True)
class ScoreConfig:
    """Score an answer file that anyone made, without a model.

    Example:
        >>> ScoreConfig("pope", Path("answers.jsonl"), Path("llava_pope_test.jsonl")).json
        False
    """

    benchmark: Annotated[conf.Positional[str], conf.arg(metavar="BENCHMARK", help_behavior_hint="")] = ""
    """The benchmark, such as `pope`."""
    answers: OrDefault[Path] = None
    """The answers: JSONL in LLaVA's layout, or an upload file."""
    questions: OrDefault[Path] = None
    """The question file, or the folder of the benchmark's files."""
    labels: OrDefault[Path] = None
    """File or folder of the labels. [default: the official name beside the questions]"""
    limit: OrDefault[int] = None
    """Only the first N questions. [default: all]"""
    uploads: OrDefault[Path] = None
    """A folder for the upload file. [default: none is written]"""
    json: Flag = False
    """Print the scores as JSON."""
    config: ConfigFile = None


@dataclass(frozen=True)
class MakePopeConfig:
    """Write POPE-style questions about scenes or your own pictures, in POPE's layout.

    Example:
        >>> MakePopeConfig(Path("data/pope-scenes")).pictures
        100
    """

    out: OrDefault[Path] = None
    """The folder to write; it must not exist or be empty."""
    data: str = "scenes"
    """`scenes`, or a JSONL file with the columns image and objects."""
    images: Images = None
    pictures: int = 100
    """Largest number of pictures."""
    size: int = 112
    """Width of scenes in pixels."""
    seed: Seed = 0
    config: ConfigFile = None
