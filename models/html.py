"""How sites and activations show themselves in a notebook. Every string is escaped."""

from collections.abc import Mapping
from html import escape
from typing import Any

from torch import Tensor

_MEANING = {
    "resid_pre": "residual stream entering the block",
    "resid_mid": "residual stream between attention and MLP",
    "resid_post": "residual stream leaving the block",
    "attn_out": "what attention writes",
    "mlp_out": "what the MLP writes",
    "q": "queries of each head",
    "k": "keys of each head",
    "v": "values of each head",
    "pattern": "attention weights of each head",
    "z": "values of each head, mixed by its attention weights",
    "in": "what enters the projector",
    "linear_1": "behind the first linear map",
    "act": "behind the activation function",
    "out": "image tokens as the language model gets them",
    "final_norm": "residual stream behind the last block and the final norm",
}
_PER_HEAD = ("q", "k", "v", "z")


def site_html(written: str, part: str, layer: int | None, name: str) -> str:
    """A site's TransformerLens name, and in words where it stands and what its activation is."""
    where = part.replace("_", " ") + ("" if layer is None else f", block {layer}")
    return f"<code>{escape(written)}</code> {escape(where)}: {escape(_MEANING.get(name, name))}"


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
