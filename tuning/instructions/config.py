"""The settings of ``generate-instructions``. Their fields are its options; see ``records.options``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from records.manifest import RunKind
from records.options import (
    NOT_SETTINGS,
    ConfigFile,
    DryRun,
    OrDefault,
    Out,
    Overwrite,
    Seed,
    SkipBad,
    settings_of,
    slug,
)
from tasks.errors import UserError

LOG, DATA, REFUSED = "requests.jsonl", "instructions.json", "refused.csv"
RUN = RunKind("generate-instructions", writes=(LOG, DATA, REFUSED, "skipped.csv"))


@dataclass(frozen=True)
class ServerOptions:
    """The server. These options do not change what is asked, so a run can be resumed with others."""

    url: str = "http://localhost:8000/v1"
    """Base address of an OpenAI-compatible server. Addresses of this machine bypass proxies."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; none is sent if it is not set. The key is never written anywhere."""
    concurrency: int = 4
    """Requests at a time."""
    timeout: float = 600.0
    """Seconds of one attempt."""
    attempts: int = 6
    """Attempts of one request, with growing waits, or as long as the server asks."""
    log: OrDefault[Path] = None
    """File of the log, which is the cache of replies; runs with other rules can share it. One run at a time uses it.
    [default: requests.jsonl in the run directory]"""
    prices: OrDefault[Path] = None
    """YAML file with a row for the model: `name: {prompt: 2.5, completion: 10}`, dollars per million tokens."""
    max_cost: OrDefault[float] = None
    """Dollars that all requests of the run may cost, those before an interruption included. Needs --prices."""


@dataclass(frozen=True)
class GenerateConfig:
    """Make instruction data from captions and boxes. The same seed and log give the same file.

    Example:
        >>> config = GenerateConfig(captions=Path("photos.jsonl"), model="some-model")
        >>> str(config.folder), config.settings["shares"]
        ('runs/instructions-photos-some-model', '58:23:77')
    """

    captions: OrDefault[Path] = None
    """COCO's captions_*.json, Karpathy's dataset_*.json, Flickr30k's .token or .csv, or a JSONL or Parquet file with
    image, captions, width, height and objects."""
    boxes: OrDefault[Path] = None
    """COCO's instances_*.json, with COCO's captions. [default: none]"""
    model: str = ""
    """Name of the model at the server."""
    server: ServerOptions = field(default_factory=ServerOptions)
    samples: OrDefault[int] = None
    """Samples to ask for; each picture gets a kind at most once. [default: one for each picture]"""
    shares: str = "58:23:77"
    """Shares of conversation, detailed description and complex reasoning, as in LLaVA's 158K."""
    prompts: OrDefault[Path] = None
    """Folder with system messages and examples in LLaVA's layout. [default: those of this package]"""
    reply_format: Literal["json", "text"] = "json"
    """Ask for JSON by a schema, or for blocks of text, for servers without `response_format`."""
    max_tokens: int = 1024
    """Largest number of tokens of a reply."""
    temperature: float = 0.7
    """Of the replies; 0 for greedy decoding."""
    fewest_turns: int = 2
    """Smallest number of questions in a conversation."""
    most_turns: int = 10
    """Largest number of questions in a conversation."""
    duplicates: float = 0.7
    """Remove a sample that shares this part of its runs of three words with an earlier one of its kind."""
    tokenizer: OrDefault[Path] = None
    """Folder of the model's tokenizer, for the tokens in --dry-run. [default: four bytes count as a token]"""
    skip_bad: SkipBad = False
    seed: Seed = 0
    out: Out = None
    overwrite: Overwrite = False
    dry_run: DryRun = False
    config: ConfigFile = None

    def __post_init__(self) -> None:
        """Check the ranges of numbers."""
        for name, value in (
            ("samples", self.samples), ("max-tokens", self.max_tokens), ("fewest-turns", self.fewest_turns),
            ("concurrency", self.server.concurrency), ("attempts", self.server.attempts),
        ):  # fmt: skip
            if value is not None and value < 1:
                raise UserError(f"{name} must be >= 1, got {value}.")
        if self.most_turns < self.fewest_turns:
            raise UserError(f"most-turns must be >= fewest-turns {self.fewest_turns}, got {self.most_turns}.")
        if not 0 <= self.temperature <= 2:
            raise UserError(f"temperature must be in [0, 2], got {self.temperature}.")
        if not 0 < self.duplicates <= 1:
            raise UserError(f"duplicates must be in (0, 1], got {self.duplicates}.")
        if not self.server.timeout > 0:
            raise UserError(f"timeout must be > 0 seconds, got {self.server.timeout}.")
        if self.seed < 0:
            raise UserError(f"seed must be >= 0, got {self.seed}.")

    @property
    def settings(self) -> dict[str, Any]:
        """The options that affect the results, as the manifest stores them."""
        server = ("url", "key_env", "concurrency", "timeout", "attempts", "log", "prices", "max_cost", "tokenizer")
        return settings_of(self, without=(*NOT_SETTINGS, *server, "skip_bad"))

    @property
    def folder(self) -> Path:
        """The run directory: ``out``, or a folder in ``runs/`` named after the captions and the model."""
        name = slug(self.captions.stem) if self.captions else "none"
        return self.out or Path("runs") / f"instructions-{name}-{slug(self.model)}"
