"""Steering: a direction added to an activation, such as a mass-mean probe's.

``load_directions(path)`` reads directions by name; a direction of a file is ``d_model``, or ``layer d_model`` where
every layer has its own.
"""

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from interventions.engines.checks import site_shape
from interventions.engines.edits import Write
from interventions.plan.cells import CellSpec
from interventions.plan.groups import Masks
from interventions.plan.plan import SteerOptions
from models.sites import Site
from tasks.errors import UserError


def steer_edits(
    spec: CellSpec,
    masks: Masks,
    options: SteerOptions,
    directions: Mapping[str, Tensor],
    norms: Mapping[tuple[Site, str], float],
) -> tuple[Write, ...]:
    """Adds alpha times direction at the site in every layer of the window.

    Args:
        spec: Of op ``"steer"``.
        masks: Of the batch that is changed.
        options: Which direction, how far, in which unit.
        directions: By name; each is brought to length 1.
        norms: By site and group, for the unit ``"norm"``: the mean L2 norm of the activation.

    Raises:
        ValueError: If the direction or a norm is missing, or the direction has no length or another shape.

    Source: Turner et al. 2023, "Steering Language Models With Activation Engineering", arXiv 2308.10248; mass-mean
        directions in Marks and Tegmark 2023, "The Geometry of Truth", arXiv 2310.06824.
    """
    mask = masks.at(spec.part, spec.tokens)
    edits = []
    for site in spec.sites:
        length = options.alpha
        if options.unit == "norm":
            if (site, spec.tokens) not in norms:
                raise UserError(
                    f"norms must hold {str(site)!r} for the group {spec.tokens!r}, got none. collect_statistics finds "
                    "them; the unit 'absolute' needs none."
                )
            length *= norms[site, spec.tokens]
        edits.append(
            Write(site, mask, length * fitting_direction(directions, options.direction, site, masks), add=True)
        )
    return tuple(edits)


def fitting_direction(
    directions: Mapping[str, Tensor], name: str, site: Site, masks: Masks
) -> Float[Tensor, "d_model"]:
    """The unit vector of a direction at a site of a batch's model; see ``direction_at``.

    Raises:
        ValueError: As there, and if the site has another width. A single number would be added everywhere.
    """
    direction = direction_at(directions, name, site)
    width = site_shape(masks.llava, masks.inputs, site)[-1]
    if len(direction) != width:
        raise UserError(
            f"direction {name!r} must have {width} numbers at {str(site)!r}, got {len(direction)}. "
            "It must come from the same model and site."
        )
    return direction


def direction_at(directions: Mapping[str, Tensor], name: str, site: Site) -> Float[Tensor, "d_model"]:
    """The unit vector of a direction at a site.

    Raises:
        ValueError: If there is none of that name, none for the layer, or it has no length.
    """
    if name not in directions:
        raise UserError(f"direction must be one of {', '.join(directions) or 'none'}, got {name!r}. Check its name.")
    given = directions[name].float()
    if given.dim() == 2 and site.layer is not None and site.layer < given.shape[0]:
        given = given[site.layer]
    if given.dim() != 1:
        raise UserError(
            f"direction {name!r} must be d_model, or layer d_model with a row for {str(site)!r}, got shape "
            f"{tuple(directions[name].shape)}. Give one vector to use it at every site."
        )
    length = float(given.norm())
    if not 0 < length < float("inf"):
        raise UserError(f"direction {name!r} must have a finite length above 0, got {length} at {str(site)!r}.")
    return given / length


def load_directions(path: Path) -> dict[str, Tensor]:
    """The directions of a safetensors file, by name.

    Raises:
        ValueError: If the file is none, or holds nothing.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"directions must be a safetensors file, got {str(path)!r} ({error}). Save one.") from error
    if not found:
        raise UserError(f"directions must hold one at least, got none in {str(path)!r}. Save a tensor by name.")
    return found
