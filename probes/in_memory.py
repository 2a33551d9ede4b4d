"""Probe a model in memory: ``probe(llava, examples, target="colour")`` returns the table of ``probe-sweep``."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from models.llava import Llava
from models.loading.quantised import quantised_as
from models.sites import Site
from probes.config import Pool, Probe, ProbeOptions, SiteOptions, SweepConfig, Tokens
from probes.linear.saving import PROBES, FittedProbe, directions_of, load_probes
from probes.probe_data import data_of
from probes.report_table import render_summary, summarise
from records.html import table_html
from records.options import ModelOptions
from records.run import FinishedRun
from tasks.dataset import Dataset
from tasks.errors import UserError
from tasks.example import Example, Label


@dataclass(frozen=True)
class ProbeResult:
    """Scores and probes of ``probe``. Printing it shows the best site of each target.

    Example:
        >>> from models.loading.load import load
        >>> from tasks.scenes.datasets import scenes_dataset
        >>> llava = load("random:tiny")
        >>> scenes = scenes_dataset(n=24, size=llava.image_size)
        >>> probe(llava, scenes, target="count", layers="1", folds=2, controls=False)  # doctest: +ELLIPSIS
        ProbeResult: 1 sites, 1 probes
        ...
    """

    table: pd.DataFrame
    """One row for each target, site and split; ``docs/results.md`` describes the columns."""
    probes: tuple[FittedProbe, ...] = field(repr=False)
    """The linear probes, fitted on all examples."""

    @property
    def directions(self) -> Mapping[str, Tensor]:
        """Unit vectors by name, as in ``directions.safetensors`` of a run."""
        return directions_of(self.probes)

    def direction(self, class_: Label | None = None, *, target: str | None = None, site: Site | str) -> Tensor:
        """Unit vector in d_model at a site; see `probes.in_memory.direction`."""
        return direction(self, class_, target=target, site=site)

    def plot(self, **options: Any) -> Any:
        """Draw score by layer; the options are those of `figures.score_by_layer.draw_score_by_layer`."""
        from figures.score_by_layer import draw_score_by_layer

        return draw_score_by_layer(self.table, **options)

    def __repr__(self) -> str:
        """The best site of each target, part and activation."""
        columns = ["target", "part", "name", "peak", "score", "lower", "upper", "chance", "onset"]
        rows = summarise(self.table)[columns].to_string(index=False, float_format=lambda value: f"{value:.2f}")
        return f"ProbeResult: {self.table['site'].nunique()} sites, {len(self.probes)} probes\n{rows}"

    def _repr_html_(self) -> str:
        return table_html(render_summary(self.table))


def probe(
    llava: Llava,
    examples: Sequence[Example] | Dataset,
    *,
    target: str | Sequence[str],
    sites: str | Sequence[str] = "resid_post",
    layers: str | None = None,
    tokens: Tokens = "auto",
    pool: Pool = "mean",
    probe: Probe = "logistic",
    folds: int = 5,
    controls: bool = True,
    batch_size: int = 16,
    seed: int = 0,
) -> ProbeResult:
    """Fit and cross-validate probes on the activations of a model in memory, with controls.

    It runs ``probe-sweep`` in a temporary folder; the table has the same columns and numbers.

    Args:
        llava: The model.
        examples: Examples with labels, or a data set.
        target: The label to predict. In a list of examples, labels that are all floats are continuous, others classes.
        sites: Activations, such as ``resid_post`` or ``blocks.12.hook_mlp_out``.
        layers: Layers of sites without one, such as ``0-3,7``. None takes all.
        tokens: Token positions; ``auto`` takes the focus box for labels of one object, else all image tokens.
        pool: How the tokens become one activation; ``none`` needs ``tokens="last"``.
        probe: Kind of probe; ``logistic`` becomes ridge regression for continuous labels.
        folds: Folds of the grouped, stratified cross-validation.
        controls: Also score shuffled labels, a control task, raw pixels and a randomly initialised model.
        batch_size: Examples in a batch.
        seed: Seed of folds, controls and resampling.

    Raises:
        UserError: If an option is invalid, a label is missing, or there are too few examples.

    Example:
        >>> from models.loading.load import load
        >>> from tasks.scenes.datasets import scenes_dataset
        >>> llava = load("random:tiny")
        >>> scenes = scenes_dataset(n=24, size=llava.image_size)
        >>> result = probe(llava, scenes, target="count", layers="0-1", folds=2, controls=False)
        >>> len(result.table)
        2
        >>> result.direction(2, site="blocks.1.hook_resid_post").norm().item()  # doctest: +ELLIPSIS
        1.0...
    """
    from probes.sweep import run_sweep

    data = data_of(examples, [target] if isinstance(target, str) else list(target), tokens, pool)
    with tempfile.TemporaryDirectory() as folder:
        config = SweepConfig(
            model=ModelOptions(
                name=llava.id,
                device=str(llava.device),
                dtype=str(llava.dtype).removeprefix("torch."),  # type: ignore[arg-type]
                attn=llava.attention,
                quantize=quantised_as(llava.model),
            ),
            sites=SiteOptions((sites,) if isinstance(sites, str) else tuple(sites), layers, tokens, pool),
            probing=ProbeOptions(tuple(t.name for t in data.targets), probe, folds, controls, maps=0),
            seed=seed,
            batch_size=batch_size,
            out=Path(folder) / "run",
        )
        finished = run_sweep(config, llava=llava, data=data, figures=False)
        assert isinstance(finished, FinishedRun)  # one process, no dry run
        linear = load_probes(config.folder) if (config.folder / PROBES).is_file() else ()
    return ProbeResult(finished.results, linear)


def direction(
    result: ProbeResult | Sequence[FittedProbe],
    class_: Label | None = None,
    *,
    target: str | None = None,
    site: Site | str,
) -> Tensor:
    """Unit vector in d_model towards a class, or towards larger values of a continuous target, for steering.

    Args:
        result: From `probe`, or the probes that `load_probes` reads from a run.
        class_: The class; None for a continuous target.
        target: The label; None if the probes have only one target.
        site: The activation, such as ``blocks.12.hook_resid_post``.

    Raises:
        UserError: If there is no such probe, or the class is unknown.

    Example:
        >>> import numpy as np
        >>> site = Site.parse("blocks.1.hook_resid_post")
        >>> row, zero = np.array([[3.0, 4.0]], dtype=np.float32), np.zeros(1, dtype=np.float32)
        >>> fitted = FittedProbe("kind", site, "image", "logistic", ("cat", "dog"), row, zero)
        >>> direction([fitted], "dog", site="blocks.1.hook_resid_post")
        tensor([0.6000, 0.8000])
    """
    probes = result.probes if isinstance(result, ProbeResult) else tuple(result)
    at = Site.parse(site) if isinstance(site, str) else site
    found = [p for p in probes if p.site == at and target in (None, p.target)]
    if len(found) != 1:
        known = ", ".join(dict.fromkeys(p.target for p in probes)) or "none"
        where = ", ".join(dict.fromkeys(str(p.site) for p in probes)) or "none"
        raise UserError(
            f"target and site must name one probe, got {target!r} and {str(at)!r}. Targets: {known}. Sites: {where}."
        )
    return found[0].direction(class_)
