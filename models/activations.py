"""``Activations``: captured values by site, as ``models.capture`` returns them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from models.sites import Site
from tasks.errors import UserError

_PER_HEAD = ("q", "k", "v", "z")


@dataclass(frozen=True, repr=False)
class Activations(Mapping[Site, Tensor]):
    """The captured values of a run by site.

    Pooled: ``example ...``. Not pooled: ``example pos ...``, the wanted positions in order, then zeros as padding.
    The last axes are ``d_model`` for residual stream and sublayer outputs, ``head d_head`` for q, k, v, z (keys and
    values have their own, fewer heads under grouped queries; q and k are before rotation), ``head key`` for the pattern
    (one row for each wanted query; keys count from the row's first real token).

    Args:
        by_site: The values, detached from the run.
        mask: By site, if not pooled: ``example pos``, False at padding.
        positions: By site; ``example pos``: the column of the batch (language model) or the token of the picture's
            sequence (vision tower: 0 is the class token; projector: patches) that each value belongs to; -1 at padding.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> inputs = llava.inputs(np.zeros((30, 40, 3), np.uint8), "What is it?")
        >>> llava.capture(inputs, "resid_post", layers=3, tokens="last")["blocks.3.hook_resid_post"].shape
        torch.Size([1, 1, 48])
    """

    by_site: Mapping[Site, Tensor]
    mask: Mapping[Site, Bool[Tensor, "example pos"]]
    positions: Mapping[Site, Int[Tensor, "example pos"]]

    def __getitem__(self, site: Site | str) -> Tensor:
        """The values at ``site``, also by its full name, or by the short name of a site that is there once."""
        return self.by_site[self.site(site)]

    def site(self, name: Site | str) -> Site:
        """The captured site with this name.

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
        """The values at ``site`` as an array on the CPU; None means the only site. bfloat16 becomes float32."""
        if site is None and len(self) != 1:
            raise UserError(f"site must be named, got none with {len(self)} captured sites. See .by_site.")
        values = (next(iter(self.by_site.values())) if site is None else self[site]).detach().cpu()
        array: np.ndarray = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return array

    def to_pandas(self) -> pd.DataFrame:
        """One row for each site, example and position (pooled: site and example), one column for each dimension.

        Positions are columns of the batch or tokens of a picture, see ``positions``; padding is left out. Heads stand
        side by side: column ``head * d_head + i``.
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
        """The sites, in the order asked for."""
        return iter(self.by_site)

    def __len__(self) -> int:
        """The number of sites."""
        return len(self.by_site)

    def _repr_html_(self) -> str:
        """For notebooks: shapes, axes and types."""
        return activations_html(self.by_site, self.mask)


class Captured(NamedTuple):
    """One batch of ``capture_examples``: the indices of its examples, and their activations in this order."""

    indices: tuple[int, ...]
    activations: Activations

    def _repr_html_(self) -> str:
        """For notebooks: which examples, and their activations."""
        return f"<p>Examples {', '.join(map(str, self.indices))}</p>" + activations_html(
            self.activations.by_site, self.activations.mask
        )


def activations_html(by_site: Mapping[Any, Tensor], mask: Mapping[Any, Tensor]) -> str:
    """One row for each site: the shape with the names of its axes, and the type; above it how much there is.

    Args:
        by_site: The values.
        mask: Which of them are no padding, for the sites that are not pooled.
    """
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td style="text-align:left">{escape(cell)}</td>'
            for cell in (
                str(site),
                " x ".join(map(str, value.shape)),
                _axes(site, value, pooled=site not in mask),
                "one an example" if site not in mask else f"{int(mask[site].sum())} of {mask[site].numel()}",
                str(value.dtype).removeprefix("torch."),
                str(value.device),
            )
        )
        + "</tr>"
        for site, value in by_site.items()
    )
    head = "".join(
        f'<th style="text-align:left">{name}</th>' for name in ("site", "shape", "axes", "positions", "dtype", "device")
    )
    size = sum(value.numel() * value.element_size() for value in by_site.values())
    count = f"{len(by_site)} site" + ("" if len(by_site) == 1 else "s")
    return (
        f"<p><b>Activations</b> at {count}, {size / 1e6:.1f} MB</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _axes(site: Any, value: Tensor, *, pooled: bool) -> str:
    """The names of the axes; none where the values are not shaped as a run leaves them."""
    name = getattr(site, "name", "")
    last = ["head", "d_head"] if name in _PER_HEAD else ["head", "key"] if name == "pattern" else ["d_model"]
    axes = ["example", *([] if pooled else ["pos"]), *last]
    return " ".join(axes) if len(axes) == value.ndim else ""
