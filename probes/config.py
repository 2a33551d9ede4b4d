"""What a probe sweep is asked to do: frozen settings, where they come from, and the error for those that cannot be met.

``SweepConfig`` is all that ``probes.sweep.run_sweep`` takes. The command line fills it from options and from a YAML
file whose keys are the names of the options (``read_yaml``); what the command line says wins.
"""

import difflib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

Tokens = Literal["auto", "image", "object", "question", "last", "all"]
Pool = Literal["mean", "max", "box", "none"]
Probe = Literal["logistic", "ridge", "mass-mean", "mlp"]
DtypeName = Literal["float32", "bfloat16", "float16"]


class BadInput(ValueError):  # noqa: N818 - says what the user hears, not what the code did
    """What the user gave cannot be used; the message is one sentence for the user, who needs no traceback."""


@contextmanager
def refusing(*errors: type[Exception]) -> Iterator[None]:
    """Turns ``errors``, raised while the user's input is read, into ``BadInput`` with the same message on one line."""
    try:
        yield
    except BadInput:
        raise
    except errors as error:
        raise BadInput(" ".join(str(error).split()) or type(error).__name__) from error


@dataclass(frozen=True)
class ModelOptions:
    """Which model is watched, and how it runs."""

    name: str = "smol"
    revision: str | None = None
    device: str = "cpu"
    dtype: DtypeName | None = None
    attn: Literal["sdpa", "eager"] = "sdpa"
    preprocess: Literal["pad", "hf"] = "pad"


@dataclass(frozen=True)
class DataOptions:
    """Which examples it sees.

    Args:
        spec: ``"scenes"``, or a JSONL or Parquet file.
        images: The folder that picture paths in the file are relative to.
        split: The examples that probes are fitted and cross-validated on.
        transfer: Examples that are only scored, by probes fitted on ``split``; None for none.
        limit: How many examples of ``split`` at most.
        transfer_limit: How many examples of ``transfer`` at most.
        skip_bad: Whether to go on without the examples whose pictures cannot be read.
    """

    spec: str = "scenes"
    images: Path | None = None
    split: str | None = None
    transfer: str | None = None
    limit: int | None = None
    transfer_limit: int | None = None
    skip_bad: bool = False


@dataclass(frozen=True)
class SiteOptions:
    """Which activations are kept, of which tokens, how pooled, and how stored (None: as the model computes them)."""

    specs: tuple[str, ...] = ()
    layers: str | None = None
    tokens: Tokens = "auto"
    pool: Pool = "mean"
    stored_as: DtypeName | None = None


@dataclass(frozen=True)
class ProbeOptions:
    """What is read from them, by which probe, and whether the controls run."""

    targets: tuple[str, ...] = ()
    probe: Probe = "logistic"
    folds: int = 5
    controls: bool = True


@dataclass(frozen=True)
class SweepConfig:
    """One probe sweep. Equal settings (all but ``out``, ``overwrite`` and ``dry_run``) give equal results."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    sites: SiteOptions = field(default_factory=SiteOptions)
    probing: ProbeOptions = field(default_factory=ProbeOptions)
    seed: int = 0
    batch_size: int = 16
    out: Path | None = None
    overwrite: bool = False
    dry_run: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides the results, as the manifest stores it: option -> plain value."""
        flat: dict[str, Any] = {"seed": self.seed, "batch_size": self.batch_size}
        for part in (self.model, self.data, self.sites, self.probing):
            flat.update(asdict(part))
        renamed = {"name": "model", "spec": "data", "specs": "site", "targets": "target"}
        return {renamed.get(key, key): _plain(value) for key, value in flat.items()}

    @property
    def folder(self) -> Path:
        """Where the run is written: ``out``, or a folder in ``runs/`` that is named after model and data."""
        return self.out or Path("runs") / f"{_slug(self.model.name)}-{_slug(self.data.spec)}"


def _plain(value: Any) -> Any:
    """``value`` as JSON would give it back."""
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value


def _slug(text: str) -> str:
    stem = text.rstrip("/").rsplit("/", 1)[-1].removesuffix(".jsonl").removesuffix(".parquet")
    return "".join(c if c.isalnum() or c in ".-_" else "-" for c in stem) or "run"


def read_yaml(path: Path, options: Collection[str]) -> dict[str, Any]:
    """The settings in a YAML file, by option name with underscores.

    Args:
        path: A file that holds one mapping; its keys are option names, with hyphens or underscores.
        options: The names that are known, with underscores.

    Raises:
        BadInput: If the file cannot be read, holds no mapping, or has a key that is no option.
    """
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise BadInput(f"config must be a readable YAML file, got {str(path)!r} ({reason}). Check the file.") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise BadInput(
            f"config must hold a mapping of options, got a {type(loaded).__name__} in {str(path)!r}. Write key: value."
        )
    settings: dict[str, Any] = {}
    for key, value in loaded.items():
        name = str(key).replace("-", "_")
        if name not in options:
            close = difflib.get_close_matches(name, options, n=1)
            advice = f"Did you mean {close[0].replace('_', '-')!r}?" if close else "See probe-sweep --help."
            raise BadInput(f"config key must be an option of probe-sweep, got {str(key)!r} in {str(path)!r}. {advice}")
        if name in settings:
            raise BadInput(f"config key must be given once, got {str(key)!r} twice in {str(path)!r}. Remove one.")
        settings[name] = value
    return settings
