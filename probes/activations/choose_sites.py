"""The sites of a sweep or a capture: by default all at which its token groups exist."""

from collections.abc import Sequence

from models.llava import Llava
from models.sites import Site, parse_sites
from probes.activations.store import groups_at
from tasks.errors import UserError

DEFAULT_SITES = (
    "vision:resid_post",
    "projector:in",
    "projector:linear_1",
    "projector:act",
    "projector:out",
    "blocks.0.hook_resid_pre",
    "resid_post",
)


def choose_sites(
    specs: Sequence[str], layers: str | None, llava: Llava, *, groups: Sequence[str], shown: str
) -> list[Site]:
    """The sites that ``specs`` name or, if there are none, the default ones, in the order of the forward pass.

    Args:
        specs: As on the command line.
        layers: Layers of sites without one; None for all.
        llava: The model.
        groups: The token groups to read; without image tokens, only sites of the language model have them.
        shown: The option ``tokens`` as given, for messages.

    Raises:
        UserError: If a site is unknown, its width depends on the example, or it has none of the groups.
    """
    text = not {"image", "object", "auto"} & set(groups)
    default = tuple(spec for spec in DEFAULT_SITES if not (text and spec.startswith(("vision:", "projector:"))))
    sites = parse_sites(specs or default, layers, llava)
    for site in sites:
        if site.name == "pattern":
            raise UserError(
                f"site must have the same width in every example, got {str(site)!r}. The width of a pattern is the "
                "length of the prompt; probe z or attn_out."
            )
        if text and not groups_at(site, groups):
            raise UserError(
                f"site must be in the language model for tokens {shown!r}, got {str(site)!r}. The "
                "vision tower and the projector have image tokens only."
            )
    return sites
