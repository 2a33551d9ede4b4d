"""``Activations``: the values of a run by site; the result of ``models.capture``."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from models.sites import Site
from tasks.errors import UserError
from tasks.html import rows_html

_PER_HEAD = ("q", "k", "v", "z")


@dataclass(frozen=True, repr=False)
class Activations(Mapping[Site, Tensor]):
    """The values of a run by site.

    Pooled values have axes ``example ...``, others ``example pos ...``: the positions in order, then zeros as padding.
    The last axes are ``d_model``; ``head d_head`` for q, k, v, z (q and k before rotation; k and v have fewer heads
    under grouped queries); ``head key`` for the pattern (keys count from the row's first real token).

    Args:
        by_site: The values.
        mask: Without pooling, ``example pos`` by site: True for values, False for padding.
        positions: Without pooling, ``example pos`` by site: the column of the batch (language model), the token of the
            vision tower (0 is the class token) or the patch (projector) that a value belongs to; -1 for padding.

    Example:
        >>> values = Activations({Site("language_model", 1, "resid_post"): torch.ones(2, 48)}, {}, {})
        >>> values["resid_post"].shape, float(values.numpy().sum())
        (torch.Size([2, 48]), 96.0)
    """

    by_site: Mapping[Site, Tensor]
    mask: Mapping[Site, Bool[Tensor, "example pos"]]
    positions: Mapping[Site, Int[Tensor, "example pos"]]

    def __getitem__(self, site: Site | str) -> Tensor:
        """The values at ``site``: a ``Site``, its full name, or a short name that only one captured site has."""
        return self.by_site[self.site(site)]

    def site(self, name: Site | str) -> Site:
        """The captured site that has this name.

        Raises:
            UserError: If no captured site, or more than one, has the name.
        """
        if isinstance(name, Site):
            return name
        found = [site for site in self.by_site if name in (str(site), site.name)]
        if len(found) != 1:
            raise UserError(
                f"site must be one of {', '.join(map(str, self.by_site))}, got {name!r}. "
                "A short name must belong to one captured site."
            )
        return found[0]

    def numpy(self, site: Site | str | None = None) -> np.ndarray:
        """The values at ``site`` (None: the only one) as an array; bfloat16 becomes float32."""
        if site is None and len(self) != 1:
            raise UserError(f"site must be named, got none with {len(self)} captured sites. See .by_site.")
        values = (next(iter(self.by_site.values())) if site is None else self[site]).detach().cpu()
        array: np.ndarray = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return array

    def to_pandas(self) -> pd.DataFrame:
        """One row for each site, example and (without pooling) position, one column for each dimension.

        Positions are those of ``positions``, without padding. Dimension i of a head is column ``head * d_head + i``.
        """
        parts = []
        for site, values in self.by_site.items():
            array = self.numpy(site).reshape(*values.shape[: 1 if site not in self.mask else 2], -1)
            keys: dict[str, Any] = {"site": str(site)}
            if site in self.mask:
                kept = self.mask[site].cpu().numpy()
                keys |= {"example": kept.nonzero()[0], "position": self.positions[site].cpu().numpy()[kept]}
                array = array[kept]
            else:
                keys["example"] = np.arange(len(array))
            parts.append(pd.DataFrame(array).assign(**keys).set_index(list(keys)))
        return pd.concat(parts)

    def __repr__(self) -> str:
        """One line for each of the first sites, with the shape."""
        lines = [f"  {site}: {' x '.join(map(str, value.shape))}" for site, value in self.by_site.items()]
        rest = [f"  and {len(lines) - 8} more"] if len(lines) > 8 else []
        return "\n".join([f"Activations at {len(lines)} site{'' if len(lines) == 1 else 's'}", *lines[:8], *rest])

    def __iter__(self) -> Iterator[Site]:
        """The sites, in the given order."""
        return iter(self.by_site)

    def __len__(self) -> int:
        """The number of sites."""
        return len(self.by_site)

    def _repr_html_(self) -> str:
        """For notebooks: shapes, axes and types."""
        return activations_html(self.by_site, self.mask)


class Captured(NamedTuple):
    """One batch of ``capture_examples``: the indices of its examples, and their activations."""

    indices: tuple[int, ...]
    activations: Activations

    def _repr_html_(self) -> str:
        """For notebooks: the examples and their activations."""
        return f"<p>Examples {', '.join(map(str, self.indices))}</p>{self.activations._repr_html_()}"


def activations_html(by_site: Mapping[Any, Tensor], mask: Mapping[Any, Tensor]) -> str:
    """A table of the sites: shapes with the names of their axes, types, and the number of values without padding."""
    rows = [
        (
            str(site),
            " x ".join(map(str, value.shape)),
            _axes(site, value, pooled=site not in mask),
            "one an example" if site not in mask else f"{int(mask[site].sum())} of {mask[site].numel()}",
            str(value.dtype).removeprefix("torch."),
            str(value.device),
        )
        for site, value in by_site.items()
    ]
    size = sum(value.numel() * value.element_size() for value in by_site.values())
    return rows_html(
        ["site", "shape", "axes", "positions", "dtype", "device"],
        rows,
        title="Activations",
        caption=f"Values at {len(by_site)} site{'' if len(by_site) == 1 else 's'}, {size / 1e6:.1f} MB",
    )


def _axes(site: Any, value: Tensor, *, pooled: bool) -> str:
    """The names of the axes; empty if ``value`` has another number of axes."""
    name = getattr(site, "name", "")
    last = "head d_head" if name in _PER_HEAD else "head key" if name == "pattern" else "d_model"
    axes = f"example {'' if pooled else 'pos '}{last}"
    return axes if len(axes.split()) == value.ndim else ""
