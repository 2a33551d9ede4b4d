"""The logit lens: the words that the residual stream at a layer predicts through the model's final norm and head."""

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor

from models.activations import Activations
from models.adapter import Adapter
from models.sites import Site
from tasks.errors import UserError


def read_words(
    llava: Adapter, resid: Activations, *, k: int = 5, transport: Callable[[Tensor, Site], Tensor] | None = None
) -> pd.DataFrame:
    """The most likely words at captured residual streams: one row for each layer, example and position.

    ``resid`` is captured at ``resid_post``, without pooling. Columns: ``layer``, ``example``, ``position`` (a column of
    the batch), ``words`` (the ``k`` most likely, most likely first) and ``probability`` (of the first). ``transport``
    maps the values at a site to the residual stream after the last block before they are read; None leaves them.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens"; on image tokens Neo et al. 2024, "Towards
        Interpreting Visual Information Processing in Vision-Language Models", arXiv 2410.07149.
    """
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}. It counts words.")
    tables = []
    for site, values in resid.by_site.items():
        kept = resid.mask[site]
        with torch.inference_mode():
            read = values[kept].to(llava.dtype)
            read = read if transport is None else transport(read, site)
            top = llava.unembed(read).float().softmax(-1).topk(k)
        words = [
            ", ".join(str(llava.tokenizer.decode([token])).strip() for token in row) for row in top.indices.tolist()
        ]
        example, position = kept.nonzero()[:, 0].tolist(), resid.positions[site][kept].tolist()
        columns = {"layer": site.layer, "example": example, "position": position, "words": words}
        tables.append(pd.DataFrame({**columns, "probability": top.values[:, 0].tolist()}))
    return pd.concat(tables, ignore_index=True)
