"""What a probe sweep is asked to do: frozen settings.

``SweepConfig`` is all that ``probes.sweep.run_sweep`` takes. The command line fills it from options and from a YAML
file whose keys are the names of the options; what the command line says wins.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from records.manifest import RunKind
from records.settings import DtypeName, ModelOptions, plain, slug

RUN = RunKind(
    "probe-sweep",
    writes=("activations", "random_init", "examples.parquet", "skipped.csv", "maps", "maps.json", "maps.parquet"),
)
Tokens = Literal["auto", "image", "object", "question", "last", "all"]
TEXT_TOKENS: tuple[Tokens, ...] = ("question", "last", "all")  # those that are not image tokens alone
Pool = Literal["mean", "max", "box", "none"]
Probe = Literal["logistic", "ridge", "mass-mean", "mlp"]


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
    """What is read from them, by which probe, and whether the controls run.

    Args:
        targets: Labels to read.
        probe: Which probe.
        folds: Of the cross-validation.
        controls: Whether they run.
        maps: On how many examples every patch is read by itself; None as many as the data can well spare, 0 for none.
    """

    targets: tuple[str, ...] = ()
    probe: Probe = "logistic"
    folds: int = 5
    controls: bool = True
    maps: int | None = None


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
        return {renamed.get(key, key): plain(value) for key, value in flat.items()}

    @property
    def folder(self) -> Path:
        """Where the run is written: ``out``, or a folder in ``runs/`` that is named after model and data."""
        return self.out or Path("runs") / f"{slug(self.model.name)}-{slug(self.data.spec)}"
