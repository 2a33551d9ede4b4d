"""Fitted linear probes of a run as safetensors files.

``probes.safetensors`` contains coefficients and intercepts. ``directions.safetensors`` contains unit vectors named
``target=class@site``, such as ``colour=red@resid_post``, with one row per layer for sites in blocks; ``patch-sweep
--steer-file`` takes it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from models.sites import Site
from probes.linear.estimators import class_direction, unit
from records.manifest import commit
from tasks.checksums import check_whole
from tasks.errors import UserError
from tasks.example import Label
from tasks.readers.parse import parse_json

PROBES, DIRECTIONS = "probes.safetensors", "directions.safetensors"
_STACKS = {"vision_tower": "vision:", "projector": "projector:", "language_model": ""}
_PER_HEAD = ("q", "k", "v", "z")  # a direction over concatenated heads has no d_model


@dataclass(frozen=True)
class FittedProbe:
    """A linear probe fitted on all examples of a run.

    Example:
        >>> site, row = Site.parse("blocks.1.hook_resid_post"), np.array([[3.0, 4.0]], dtype=np.float32)
        >>> probe = FittedProbe("kind", site, "image", "logistic", ("cat", "dog"), row, np.zeros(1, dtype=np.float32))
        >>> probe.direction("cat")
        tensor([-0.6000, -0.8000])
    """

    target: str
    """The label."""
    site: Site
    """The activation."""
    tokens: str
    """The token group over which the activation is pooled."""
    probe: str
    """``logistic``, ``ridge`` or ``mass-mean``."""
    classes: tuple[Label, ...]
    """The classes in the order of the rows of ``coef``; empty for a number."""
    coef: npt.NDArray[np.float32]
    """Coefficients, "row d_model"; one row for two classes, towards the second, and for a number."""
    intercept: npt.NDArray[np.float32]
    """One number for each row."""

    def direction(self, class_: Label | None = None) -> Tensor:
        """Unit vector in d_model towards ``class_``, or towards larger values of a continuous target.

        Raises:
            UserError: If the class is unknown, or the probe's coefficients are all zero.
        """
        coef = self.coef.astype(np.float64)
        if not self.classes:
            return torch.from_numpy(unit(coef[0])).float()
        return torch.from_numpy(class_direction(coef, np.array(self.classes, dtype=object), class_)).float()


def save_probes(folder: Path, probes: Sequence[FittedProbe]) -> None:
    """Write ``probes.safetensors`` and ``directions.safetensors``, unless there is no linear probe."""
    if not probes:
        return
    tensors, about = {}, []
    for number, probe in enumerate(probes):
        tensors[f"{number}.coef"] = torch.from_numpy(probe.coef)
        tensors[f"{number}.intercept"] = torch.from_numpy(probe.intercept)
        about.append(
            {"target": probe.target, "site": str(probe.site), "tokens": probe.tokens, "probe": probe.probe,
             "classes": probe.classes}
        )  # fmt: skip
    commit(folder / PROBES, save(tensors, metadata={"probes": json.dumps(about)}))
    directions = directions_of(probes)
    if directions:
        commit(folder / DIRECTIONS, save(directions))


def load_probes(folder: Path) -> tuple[FittedProbe, ...]:
    """The probes in the run directory of a probe sweep.

    Raises:
        UserError: If the folder contains no readable ``probes.safetensors``.

    Example:
        >>> load_probes(Path("no_run"))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        tasks.errors.UserError: folder must contain probes.safetensors, got 'no_run' ...
    """
    check_whole(folder / PROBES, advice="Start the same probe-sweep again: it is made anew.")
    try:
        with safe_open(folder / PROBES, framework="np") as file:
            about = parse_json(file.metadata()["probes"])
            return tuple(
                FittedProbe(
                    entry["target"], Site.parse(entry["site"]), entry["tokens"], entry["probe"],
                    tuple(entry["classes"]), file.get_tensor(f"{number}.coef"), file.get_tensor(f"{number}.intercept"),
                )
                for number, entry in enumerate(about)
            )  # fmt: skip
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"folder must contain {PROBES}, got {str(folder)!r} ({error}). probe-sweep writes it for linear probes."
        ) from error


def directions_of(probes: Iterable[FittedProbe]) -> dict[str, Tensor]:
    """Unit vectors by name; the vectors of one activation are stacked over the blocks, "layer d_model".

    Layers without a probe have zeros. Probes of single heads and probes whose coefficients are all zero are left out.
    """
    rows: dict[str, dict[int | None, Tensor]] = {}
    for probe in probes:
        if probe.site.name in _PER_HEAD or not np.any(probe.coef):
            continue
        where = _STACKS[probe.site.part] + probe.site.name
        for class_ in probe.classes or (None,):
            label = probe.target if class_ is None else f"{probe.target}={class_}"
            try:
                row = probe.direction(class_)
            except UserError:  # a class whose coefficients equal the mean of all classes
                continue
            rows.setdefault(f"{label}@{where}", {})[probe.site.layer] = row
    found = {}
    for name, by_layer in rows.items():
        layers = [layer for layer in by_layer if layer is not None]
        if not layers:
            found[name] = by_layer[None]
            continue
        found[name] = torch.zeros(max(layers) + 1, len(by_layer[layers[0]]))
        for layer in layers:
            found[name][layer] = by_layer[layer]
    return found
