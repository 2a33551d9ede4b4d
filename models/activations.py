"""What a run leaves behind: ``Activations``, its values by site, as ``models.capture`` returns them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Bool, Int
from torch import Tensor

from models.html import activations_html
from models.sites import Site


@dataclass(frozen=True)
class Activations(Mapping[Site, Tensor]):
    """The values of a run by site.

    Pooled: ``example ...``. Not pooled: ``example pos ...``, the wanted positions first to last, then zeros as padding.
    The last axes are ``d_model`` for residual stream and sublayer outputs, ``head d_head`` for q, k, v, z (keys and
    values have their own, fewer heads under grouped queries; q and k are before rotation), ``head key`` for the pattern
    (one row for each wanted query; keys count from the row's first real token).

    Args:
        by_site: The values, detached from the run.
        mask: By site; where not pooled, ``example pos``: True where there is a value and no padding.
        positions: By site; ``example pos``: the column of the batch (language model) or the token of the picture's
            sequence (vision tower: 0 is the class token; projector: patches) that each value belongs to; -1 at padding.
    """

    by_site: Mapping[Site, Tensor]
    mask: Mapping[Site, Bool[Tensor, "example pos"]]
    positions: Mapping[Site, Int[Tensor, "example pos"]]

    def __getitem__(self, site: Site) -> Tensor:
        """The values at ``site``."""
        return self.by_site[site]

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
    """What ``capture_examples`` yields: which examples, and their activations in the same order."""

    indices: tuple[int, ...]
    activations: Activations

    def _repr_html_(self) -> str:
        """For notebooks: which examples, and their activations."""
        return f"<p>Examples {', '.join(map(str, self.indices))}</p>" + activations_html(
            self.activations.by_site, self.activations.mask
        )
