"""One experiment in one call: ``patch``, ``attribution``, ``path_patch`` and ``direct_attribution``.

    effects = patch(llava, clean, corrupt, site="resid_post", layers="0-31", tokens="image")
    effects.recovered, effects.table, effects.plot()

Each runs cells of a plan on the engines of ``patch-sweep`` and gives the same numbers.
"""

from collections.abc import Sequence
from typing import get_args

import pandas as pd
import torch
from torch import Tensor

from interventions.cell_statistics import summarise_cells
from interventions.engines.base_runs import plain_logits, prepare_base
from interventions.engines.edits import Cell
from interventions.engines.engine import run_cells
from interventions.engines.names import EngineName
from interventions.in_memory.context_managers import Heads, heads_text
from interventions.in_memory.results import DirectEffects, Effects
from interventions.metrics import UNDEFINED_BELOW, Readout, answer_tokens, find_readout, measure
from interventions.operations.attribution import attribute
from interventions.operations.build_edits import build_edits
from interventions.operations.dataset_statistics import DatasetStatistics
from interventions.operations.direct_attribution import direct_logit_attribution
from interventions.operations.path_patching import Head, ReceiverInput, path_cells
from interventions.plan.cells import CellSpec
from interventions.plan.options import Direction, Metric, Op, PatchOptions, check_among
from interventions.plan.plan import InterventionPlan
from models.inputs import Inputs
from models.layer_ranges import LayerRange, layer_text
from models.llava import Llava
from models.sites import Site
from records.intervals import mean_intervals
from tasks.errors import UserError

Answers = str | Sequence[str] | None
_LOGITS = 2**26  # patched logits are returned up to this many numbers: 256 MB in float32


def patch(
    llava: Llava,
    clean: Inputs,
    corrupt: Inputs,
    *,
    site: str | Site = "resid_post",
    layers: LayerRange | None = None,
    tokens: str | Sequence[str] = "image",
    heads: Heads | None = None,
    direction: str = "denoise",
    answers: Answers = None,
    foils: Answers = None,
    metric: Metric = "logit_difference",
    engine: EngineName = "incremental",
    seed: int = 0,
) -> Effects:
    """Activation patching: how much each layer's activation moves the corrupt run towards the clean run.

    Args:
        llava: The model.
        clean: A batch of prompts, with or without answers.
        corrupt: As many prompts of the same lengths, row by row.
        site: Such as ``"resid_post"`` or ``"blocks.3.attn.hook_z"``.
        layers: Such as ``"10-20"`` or 12, each patched on its own; None means all.
        tokens: One or several groups, each patched on its own.
        heads: ``"all"`` for each head on its own, ``"0+3"`` for two together; None for all together.
        direction: ``"denoise"`` puts clean values into the corrupt run, ``"noise"`` corrupt values into the clean run.
        answers: One for all or one for each example; metrics use its first token. None takes the answers of ``clean``
            as ``patch-sweep`` does, or, without answers there, the clean run's most likely token.
        foils: Answers to compare with; None takes the corrupt run's most likely other token.
        metric: Metric of the logits.
        engine: ``"incremental"`` or ``"full"``; both give the same numbers.
        seed: Seed of the sign flips and of the choice of the best cell.

    Source: Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> black, white = (llava.inputs(np.full((8, 8, 3), level, np.uint8), "What is it?") for level in (0, 255))
        >>> patch(llava, black, white, site="resid_pre", layers=0, tokens="image").recovered.round(3).tolist()
        [1.0]
    """
    plan = _plan("patch", site, layers, tokens, heads, direction, metric)
    specs = plan.cells(llava)
    run = _Runs(llava, clean, corrupt, answers, foils, metric, direction)
    cells = build_edits(specs, llava, run.inputs, run.inputs.examples, DatasetStatistics(plan))
    return run.effects(specs, cells, engine, seed)


def attribution(
    llava: Llava,
    clean: Inputs,
    corrupt: Inputs,
    *,
    site: str | Site = "resid_post",
    layers: LayerRange | None = None,
    tokens: str | Sequence[str] = "image",
    heads: Heads | None = None,
    direction: str = "denoise",
    answers: Answers = None,
    foils: Answers = None,
    metric: Metric = "logit_difference",
    seed: int = 0,
) -> Effects:
    """Attribution patching: a first-order estimate of ``patch`` for all cells from one gradient.

    Arguments are those of ``patch``.

    Source: Nanda 2023, "Attribution Patching"; Syed et al. 2023, arXiv 2310.10348.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> black, white = (llava.inputs(np.full((8, 8, 3), level, np.uint8), "What is it?") for level in (0, 255))
        >>> attribution(llava, black, white, site="resid_post", tokens="image").values.shape
        torch.Size([4, 1])
    """
    plan = _plan("attribute", site, layers, tokens, heads, direction, metric)
    specs = plan.cells(llava)
    run = _Runs(llava, clean, corrupt, answers, foils, metric, direction)
    found = attribute(
        llava, run.inputs, run.other, specs, run.inputs.examples, DatasetStatistics(plan), run.score,
        readout=run.readout.columns,
    )  # fmt: skip
    return run.summary(specs, found.estimated[0].detach().cpu(), None, seed)


def path_patch(
    llava: Llava,
    clean: Inputs,
    corrupt: Inputs,
    *,
    senders: Sequence[tuple[int, int]],
    receivers: Sequence[tuple[int, int]],
    entrance: ReceiverInput = "v",
    tokens: str = "last",
    sender_tokens: str = "all",
    direction: str = "denoise",
    answers: Answers = None,
    foils: Answers = None,
    metric: Metric = "logit_difference",
    seed: int = 0,
) -> Effects:
    """Path patching: the direct effect of each sending head on the queries, keys or values of later heads.

    ``senders`` are heads as (layer, head), each patched on its own. ``receivers`` are changed together and are in later
    layers; ``entrance`` is the input of them that changes. ``tokens`` are the receivers' positions, ``sender_tokens``
    the senders'. Other arguments are those of ``patch``.

    Source: Wang et al. 2022, arXiv 2211.00593; Goldowsky-Dill et al. 2023, arXiv 2304.05969.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> black, white = (llava.inputs(np.full((8, 8, 3), level, np.uint8), "What is it?") for level in (0, 255))
        >>> path_patch(llava, black, white, senders=[(0, 1)], receivers=[(3, 0)]).values.shape
        torch.Size([1, 1])
    """
    run = _Runs(llava, clean, corrupt, answers, foils, metric, direction)
    heads = [Head(*sender) for sender in senders]
    cells = path_cells(
        llava, run.inputs, run.other, heads, [Head(*receiver) for receiver in receivers], entrance, tokens=tokens,
        sender_tokens=sender_tokens,
    )  # fmt: skip
    specs = [
        CellSpec("patch", str(Site("language_model", layer, "z")), layer, str(layer), sender_tokens, str(head))
        for layer, head in heads
    ]
    return run.effects(specs, cells, "incremental", seed)


def direct_attribution(
    llava: Llava, inputs: Inputs, *, answers: Answers = None, foils: Answers = None
) -> DirectEffects:
    """Direct logit attribution: the contribution of each layer and head to the logit difference.

    ``answers`` and ``foils`` are as for ``patch``, by default the most and the second most likely token.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> inputs = llava.inputs(np.zeros((30, 40, 3), np.uint8), "What is it?")
        >>> shares = direct_attribution(llava, inputs).shares
        >>> bool(torch.allclose(shares.embedding + shares.attn_out.sum(0) + shares.mlp_out.sum(0),
        ...                     shares.logit_difference, atol=1e-4))
        True
    """
    inputs = inputs.laid_out("right", answers=False)
    readout = _next_token_readout(llava, inputs, inputs, answers, foils)
    shares = direct_logit_attribution(llava, inputs, readout.columns[:, 0], readout.expected[:, 0], readout.foil)
    parts: list[tuple[str, int | None, int | None, Tensor]] = [("embedding", None, None, shares.embedding)]
    for name in ("attn_out", "mlp_out"):
        parts += [(name, layer, None, value) for layer, value in enumerate(getattr(shares, name))]
    for layer, by_head in enumerate(shares.heads):
        parts += [("head", layer, head, value) for head, value in enumerate(by_head)]
    array = torch.stack([value for *_, value in parts]).double().cpu().numpy()
    interval = mean_intervals(array)
    table = pd.DataFrame([part[:3] for part in parts], columns=["component", "layer", "head"])
    table = table.astype({"layer": "Int64", "head": "Int64"})
    table = table.assign(value=array.mean(1), lower=interval.lower, upper=interval.upper, n=len(inputs))
    return DirectEffects(table, shares)


def _plan(
    op: Op, site: str | Site, layers: LayerRange | None, tokens: str | Sequence[str], heads: Heads | None,
    direction: str, metric: Metric,
) -> InterventionPlan:  # fmt: skip
    """The plan of one site."""
    groups = (tokens,) if isinstance(tokens, str) else tuple(tokens)
    return InterventionPlan(
        op, sites=(str(site),), layers=layer_text(layers), tokens=groups, heads=heads_text(heads),
        options=PatchOptions("noise" if direction == "noise" else "denoise"), metrics=(metric,),
    )  # fmt: skip


class _Runs:
    """The two runs of a comparison and their readout; runs cells and summarises them."""

    def __init__(
        self, llava: Llava, clean: Inputs, corrupt: Inputs, answers: Answers, foils: Answers, metric: Metric,
        direction: str,
    ) -> None:  # fmt: skip
        check_among("direction", direction, get_args(Direction))
        if len(clean) != len(corrupt):
            raise UserError(f"corrupt must have {len(clean)} examples, as clean, got {len(corrupt)}.")
        clean, corrupt = (batch.laid_out("right", answers=answers is None) for batch in (clean, corrupt))
        self.llava, self.metric, self.direction = llava, metric, direction
        if answers is None and all(layout.prompt_stop < layout.real.stop for layout in clean.layout):
            texts = _each(foils, len(clean), "foils")
            if texts is None and metric == "logit_difference":
                raise UserError(
                    "foils must be given with answers, got none. They are what the answer is compared with."
                )
            self.readout = find_readout(llava, clean, texts)
        else:
            self.readout = _next_token_readout(llava, clean, corrupt, answers, foils)
        self.inputs, self.other = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
        self.clean_logits, self.corrupt_logits = (
            plain_logits(llava, batch, self.readout.columns) for batch in (clean, corrupt)
        )

    def score(self, logits: Tensor) -> Tensor:
        """The metric of each example, ``1 example``."""
        return measure(logits, self.readout, (self.metric,), clean=self.clean_logits)

    def effects(self, specs: Sequence[CellSpec], cells: Sequence[Cell], engine: EngineName, seed: int) -> Effects:
        """Run the cells and summarise them."""
        base = prepare_base(self.llava, self.inputs, self.other, readout=self.readout.columns, engine=engine)
        kept = len(cells) * len(self.inputs) * self.clean_logits.shape[-1] <= _LOGITS

        def read(logits: Tensor) -> Tensor:
            score = self.score(logits)[0]
            return torch.cat([score[:, None], logits[:, 0] if kept else logits[:, 0, :0]], 1).cpu()

        found = torch.stack(run_cells(self.llava, base, cells, read, engine=engine))
        return self.summary(specs, found[..., 0], found[..., 1:] if kept else None, seed)

    def summary(self, specs: Sequence[CellSpec], values: Tensor, logits: Tensor | None, seed: int) -> Effects:
        """Summarise the values as a table and tensors."""
        clean, corrupt = (self.score(found).cpu() for found in (self.clean_logits, self.corrupt_logits))
        table = summarise_cells(
            specs, (self.metric,), values[:, None], clean, corrupt, model=self.llava.id,
            unchanged="corrupt" if self.direction == "denoise" else "clean",
            undefined_below=UNDEFINED_BELOW[self.llava.dtype], seed=seed,
        )  # fmt: skip
        return Effects(table, values, clean[0], corrupt[0], logits)


def _next_token_readout(llava: Llava, clean: Inputs, corrupt: Inputs, answers: Answers, foils: Answers) -> Readout:
    """The answer's and the foil's token after the prompt; by default the most likely ones of the two runs."""
    n = len(clean)
    columns = torch.tensor([[layout.prompt_stop - 1] for layout in clean.layout], device=llava.device)
    ours, theirs = (plain_logits(llava, batch, columns)[:, 0] for batch in (clean, corrupt))
    given = [_each(texts, n, name) for texts, name in ((answers, "answers"), (foils, "foils"))]
    found: list[Tensor] = []
    for texts, logits in zip(given, (ours, theirs), strict=True):
        if texts is None:
            if found:  # the foil differs from the answer
                logits = logits.scatter(1, found[0][:, None], -torch.inf)
            found.append(logits.argmax(-1))
        else:
            first = [answer_tokens(llava, prompt, text)[0] for prompt, text in zip(clean.prompts, texts, strict=True)]
            found.append(torch.tensor(first, device=llava.device))
    if bool((found[0] == found[1]).any()):
        raise UserError(
            "foils must differ from answers in their first token. Prepare inputs with answers to read later ones."
        )
    zeros = torch.zeros_like(found[0])
    return Readout(columns, found[0][:, None], zeros + 1, zeros, found[1])


def _each(texts: Answers, n: int, name: str) -> list[str] | None:
    if texts is None:
        return None
    found = [texts] * n if isinstance(texts, str) else list(texts)
    if len(found) != n:
        raise UserError(f"{name} must be one for all or one for each of {n} examples, got {len(found)}.")
    return found
