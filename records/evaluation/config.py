"""The options of ``benchmark-eval`` and its sub-commands. See ``records.options``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro import conf

from records.manifest import RunKind
from records.options import (
    LARGEST,
    MOST_NEW_TOKENS,
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
    check_ranges,
    named,
    options_of,
    settings_of,
    slug,
)
from tasks.errors import UserError

JUDGE_LOG = "judge.jsonl"
RUN = RunKind("benchmark-eval", writes=("parts", "answers", "uploads", "reviews", JUDGE_LOG, "skipped.csv"))


@dataclass(frozen=True)
class JudgeOptions:
    """The judge of LLaVA-Bench (in the wild) and MM-Vet: a model at an OpenAI-compatible server.

    Example:
        >>> JudgeOptions(url="http://localhost:8000/v1", model="some-model").is_given
        True
    """

    url: Annotated[OrDefault[str], named("judge-url")] = None
    """Base address of the judge's server, such as `http://localhost:8000/v1`. [default: no judge]"""
    model: Annotated[str, named("judge-model")] = ""
    """Name of the judge at the server."""
    key_env: Annotated[str, named("judge-key-env")] = "OPENAI_API_KEY"
    """Environment variable that holds the judge's key; none is sent if it is not set. It is never written anywhere."""
    concurrency: Annotated[int, named("judge-concurrency")] = 4
    """Requests at a time."""
    timeout: Annotated[float, named("judge-timeout")] = 600.0
    """Seconds of one attempt."""
    attempts: Annotated[int, named("judge-attempts")] = 6
    """Attempts of one request, with growing waits, or as long as the server asks."""
    prices: Annotated[OrDefault[Path], named("judge-prices")] = None
    """YAML file with a row for the judge: `name: {prompt: 2.5, completion: 10}`, dollars per million tokens."""
    max_cost: Annotated[OrDefault[float], named("judge-max-cost")] = None
    """Dollars that all requests in the log may cost together. Needs --judge-prices."""

    @property
    def is_given(self) -> bool:
        """Whether there is a judge."""
        return self.url is not None

    def check(self, judged: bool) -> None:
        """Raise ``UserError`` unless address and model are given together, and a judge grades something."""
        if (self.url is None) != (not self.model):
            missing, given = ("judge-url", "judge-model") if self.url is None else ("judge-model", "judge-url")
            raise UserError(f"{missing} must go with {given}, got only one. Give both.")
        if self.is_given and not judged:
            raise UserError(
                "judge-url must go with a benchmark that a judge grades, got none. Those are llava_wild and mmvet."
            )
        changed = [o.name for o, d in zip(options_of(self), options_of(JudgeOptions()), strict=True) if o != d]
        if changed and not self.is_given:
            raise UserError(f"{changed[0]} must go with judge-url and judge-model, got neither. Give both.")


_JUDGE = tuple(option.name.replace("-", "_") for option in options_of(JudgeOptions()))
# These change no answer: batches are about speed, labels and the judge are needed only for the scores.
_NO_SETTINGS = (*NOT_SETTINGS, "batch_size", "labels", *_JUDGE)


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
    judge: JudgeOptions = field(default_factory=JudgeOptions)
    seed: Seed = 0
    out: Out = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
    config: ConfigFile = None

    def __post_init__(self) -> None:
        """Check the ranges of numbers."""
        check_ranges(
            ("limit", self.limit, 1, LARGEST), ("new-tokens", self.new_tokens, 1, MOST_NEW_TOKENS),
            ("batch-size", self.batch_size, 1, 2**20), ("seed", self.seed, 0, 2**63 - 1),
        )  # fmt: skip

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
    judge: JudgeOptions = field(default_factory=JudgeOptions)
    judge_log: OrDefault[Path] = None
    """File of the judge's replies, which are not asked for again. [default: NAME.judge.jsonl beside the answers]"""
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
    follow_links: FollowLinks = False
    size: int = 112
    """Width of scenes in pixels."""
    seed: Seed = 0
    config: ConfigFile = None
