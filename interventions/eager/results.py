"""What the eager functions return: ``Effects`` of patching, ``DirectEffects`` of direct logit attribution."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from interventions.operations.direct_attribution import DirectAttribution

_SHOWN = 10  # rows


class _Table:
    """Prints a heading and the first rows; in a notebook as HTML."""

    table: pd.DataFrame

    @property
    def heading(self) -> str:
        """One line: what the table holds."""
        raise NotImplementedError

    def _brief(self) -> pd.DataFrame:
        """The columns worth printing."""
        raise NotImplementedError

    def __repr__(self) -> str:
        rest = len(self.table) - _SHOWN
        more = f"\n... {rest} more rows in .table" if rest > 0 else ""
        return f"{self.heading}\n{self._brief().head(_SHOWN).to_string(index=False, float_format='%.3g')}{more}"

    def _repr_html_(self) -> str:
        rest = len(self.table) - _SHOWN
        more = f"<p>{rest} more rows in <code>.table</code></p>" if rest > 0 else ""
        shown = self._brief().head(_SHOWN).to_html(index=False, float_format="{:.3g}".format, border=0)
        return f"<p><b>{self.heading}</b></p>{shown}{more}"


@dataclass(frozen=True, eq=False, repr=False)
class Effects(_Table):
    """The effect of each cell: one intervention at one layer.

    Args:
        table: One row for each cell and metric, with the columns of ``patch-sweep`` (``docs/results.md``): ``value``
            and ``recovered`` with 95 % intervals over examples, ``clean``, ``corrupt``, ``n``, ``p``.
        values: The metric by cell and example.
        clean: The metric of the clean run.
        corrupt: The metric of the corrupt run.
        logits: At the prompt's last position, float32; None where they are estimated, not computed.
    """

    table: pd.DataFrame
    values: Float[Tensor, "cell example"]
    clean: Float[Tensor, "example"]
    corrupt: Float[Tensor, "example"]
    logits: Float[Tensor, "cell example vocab"] | None = None

    @property
    def recovered(self) -> np.ndarray:
        """The recovered fraction of each cell: 0 as in the corrupt run, 1 as in the clean run."""
        found: np.ndarray = self.table["recovered"].to_numpy(float)
        return found

    @property
    def heading(self) -> str:
        """What was done, on how many examples."""
        first = self.table.iloc[0]
        n, cells = int(first["n"]), len(self.table)
        return (
            f"{first['op']} at {first['name']}, {first['tokens']}: {cells} cell{'' if cells == 1 else 's'}, n = {n}; "
            f"{first['metric']} clean {first['clean']:.3g}, corrupt {first['corrupt']:.3g}"
        )

    def _brief(self) -> pd.DataFrame:
        columns = ["layer", "head", "value", "lower", "upper", "recovered", "recovered_lower", "recovered_upper"]
        return self.table[[name for name in columns if name != "head" or self.table["head"].notna().any()]]

    def plot(self) -> Any:
        """Draws the recovered fraction; returns the matplotlib axes."""
        from figures.runs import draw_patch_run

        return next(draw_patch_run(self.table)).axes


@dataclass(frozen=True, eq=False, repr=False)
class DirectEffects(_Table):
    """How much each part writes into the logit difference at the prompt's last position.

    Args:
        table: One row for each part: ``component`` (``embedding``, ``attn_out``, ``mlp_out``, ``head``), ``layer``,
            ``head``, ``value`` (mean over examples), ``lower``, ``upper`` (95 % interval), ``n``.
        shares: The same by example.
    """

    table: pd.DataFrame
    shares: DirectAttribution

    @property
    def heading(self) -> str:
        """The logit difference, on how many examples."""
        difference = self.shares.logit_difference
        return f"direct logit attribution: logit difference {float(difference.mean()):.3g}, n = {len(difference)}"

    def _brief(self) -> pd.DataFrame:
        order = self.table["value"].abs().sort_values(ascending=False).index
        return self.table.loc[order]

    def plot(self) -> Any:
        """Draws the shares of attention and MLP layers; returns the matplotlib axes."""
        import matplotlib.pyplot as plt

        _, axes = plt.subplots(figsize=(4, 2.5))
        for name in ("attn_out", "mlp_out"):
            rows = self.table[self.table["component"] == name]
            axes.plot(rows["layer"].astype(int), rows["value"].astype(float), marker=".", label=name)
        axes.set(xlabel="layer, from 0", ylabel="logit difference")
        axes.legend(frameon=False)
        return axes
