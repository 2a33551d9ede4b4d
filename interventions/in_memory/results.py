"""Results of the functions in ``measure``: ``Effects`` of patching, ``DirectEffects`` of direct logit attribution."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from interventions.operations.direct_attribution import DirectAttribution

_SHOWN = 10  # rows


class _Table:
    """A table that prints as a heading and its first rows, in a notebook as HTML."""

    table: pd.DataFrame

    def _shown(self) -> tuple[str, pd.DataFrame]:
        """One line that describes the table, and the rows and columns to print."""
        raise NotImplementedError

    def __repr__(self) -> str:
        heading, shown = self._shown()
        more = f"\n... {len(shown) - _SHOWN} more rows in .table" if len(shown) > _SHOWN else ""
        return f"{heading}\n{shown.head(_SHOWN).to_string(index=False, float_format='%.3g')}{more}"

    def _repr_html_(self) -> str:
        heading, shown = self._shown()
        more = f"<p>{len(shown) - _SHOWN} more rows in <code>.table</code></p>" if len(shown) > _SHOWN else ""
        rows = shown.head(_SHOWN).to_html(index=False, float_format="{:.3g}".format, border=0)
        return f"<p><b>{heading}</b></p>{rows}{more}"


@dataclass(frozen=True, eq=False, repr=False)
class Effects(_Table):
    """The effect of each cell: one intervention at one layer.

    Args:
        table: One row for each cell and metric, with the columns of ``patch-sweep`` (``docs/results.md``): ``value``
            and ``recovered`` with 95 % intervals over examples, ``clean``, ``corrupt``, ``n``, ``p``.
        values: The metric in each cell.
        clean: The metric in the clean run.
        corrupt: The metric in the corrupt run.
        logits: Float32, at the prompt's last position; None where effects are estimated.
    """

    table: pd.DataFrame
    values: Float[Tensor, "cell example"]
    clean: Float[Tensor, " example"]
    corrupt: Float[Tensor, " example"]
    logits: Float[Tensor, "cell example vocab"] | None = None

    @property
    def recovered(self) -> np.ndarray:
        """The recovered fraction of each cell: 0 equals the corrupt run, 1 the clean run."""
        found: np.ndarray = self.table["recovered"].to_numpy(float)
        return found

    def _shown(self) -> tuple[str, pd.DataFrame]:
        first, cells = self.table.iloc[0], len(self.table)
        heading = (
            f"{first['op']} at {first['name']}, {first['tokens']}: {cells} cell{'' if cells == 1 else 's'}, n = "
            f"{first['n']}; {first['metric']} clean {first['clean']:.3g}, corrupt {first['corrupt']:.3g}"
        )
        columns = ["layer", "head", "value", "lower", "upper", "recovered", "recovered_lower", "recovered_upper"]
        return heading, self.table[[name for name in columns if name != "head" or self.table["head"].notna().any()]]

    def plot(self) -> Any:
        """Draw the recovered fraction; return the matplotlib axes."""
        from figures.runs import draw_patch_run

        return next(draw_patch_run(self.table)).axes


@dataclass(frozen=True, eq=False, repr=False)
class DirectEffects(_Table):
    """The contribution of each part to the logit difference at the prompt's last position.

    Args:
        table: One row for each part: ``component`` (``embedding``, ``attn_out``, ``mlp_out``, ``head``), ``layer``,
            ``head``, ``value`` (mean over examples), ``lower``, ``upper`` (95 % interval), ``n``.
        shares: The contributions by example.
    """

    table: pd.DataFrame
    shares: DirectAttribution

    def _shown(self) -> tuple[str, pd.DataFrame]:
        difference = self.shares.logit_difference
        heading = f"direct logit attribution: logit difference {float(difference.mean()):.3g}, n = {len(difference)}"
        return heading, self.table.loc[self.table["value"].abs().sort_values(ascending=False).index]

    def plot(self) -> Any:
        """Draw the shares of attention and MLP layers; return the matplotlib axes."""
        import matplotlib.pyplot as plt

        _, axes = plt.subplots(figsize=(4, 2.5))
        for name in ("attn_out", "mlp_out"):
            rows = self.table[self.table["component"] == name]
            axes.plot(rows["layer"].astype(int), rows["value"].astype(float), marker=".", label=name)
        axes.set(xlabel="layer, from 0", ylabel="logit difference")
        axes.legend(frameon=False)
        return axes
