"""Directions in activation space, ``d_model`` or ``layer d_model``: ``load_directions(path)`` reads a file."""

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from interventions.engines.checks import site_shape
from models.inputs import Inputs
from models.llava import Llava
from models.sites import Site
from tasks.checksums import check_recorded
from tasks.errors import UserError
from tasks.files import check_regular


def load_directions(path: Path) -> dict[str, Tensor]:
    """The directions in a safetensors file, by name."""
    check_recorded(path, advice="Start the command that wrote it again, or remove .checksums if another program did.")
    try:
        check_regular(path)
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"directions must be a safetensors file, got {str(path)!r} ({error}).") from error
    if not found:
        raise UserError(f"directions must contain at least one, got none in {str(path)!r}.")
    return found


def direction_at(directions: Mapping[str, Tensor], name: str, site: Site) -> Float[Tensor, " d_model"]:
    """The unit vector of a direction at a site."""
    if name not in directions:
        raise UserError(f"direction must be one of {', '.join(directions) or 'none'}, got {name!r}.")
    given = directions[name].float()
    if given.dim() == 2 and site.layer is not None and site.layer < given.shape[0]:
        given = given[site.layer]
    if given.dim() != 1:
        raise UserError(
            f"direction {name!r} must be d_model, or layer d_model with a row for {str(site)!r}, got shape "
            f"{tuple(directions[name].shape)}. A single vector is used at every site."
        )
    length = float(given.norm())
    if not 0 < length < float("inf"):
        raise UserError(f"direction {name!r} must have a finite length above 0, got {length} at {str(site)!r}.")
    return given / length


def fitting_direction(
    directions: Mapping[str, Tensor], name: str, site: Site, llava: Llava, inputs: Inputs
) -> Float[Tensor, " d_model"]:
    """The unit vector of a direction at a site of ``llava``, whose width it must have."""
    direction = direction_at(directions, name, site)
    width = site_shape(llava, inputs, site)[-1]
    if len(direction) != width:
        raise UserError(
            f"direction {name!r} must have {width} numbers at {str(site)!r}, got {len(direction)}. "
            "It must come from the same model and site."
        )
    return direction
