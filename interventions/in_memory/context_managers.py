"""Context managers that change a model's runs: ``ablated``, ``knocked_out``, ``patched``, ``skipped``, ``steered``.

    with knocked_out(llava, source="image", target="last", layers="10-20"):
        llava.generate(image, question)

They apply to ``llava.generate``, ``llava.logits``, ``llava.capture`` and ``llava.logit_lens`` inside the ``with``
statement. Nested ones act together, as the edits of one cell: in the order of the forward pass, and at one site the
outer one first.

Tokens are named as in ``interventions.plan.groups`` and found in every batch that runs. Generated tokens count as an
answer: they are in ``answer``, ``all`` and ``text``, and ``last`` as the target of a knockout is the prompt's last
position and every generated one. The change at a position depends only on that position, so generation with a
key-value cache gives the same text as recomputing the full sequence at every step.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from interventions.engines.edits import Cell, Edit, Write
from interventions.engines.full_forward import applied
from interventions.operations.ablation import resampled_examples
from interventions.operations.build_edits import EDITS
from interventions.operations.dataset_statistics import DatasetStatistics, collect_statistics
from interventions.operations.prepare_batch import PreparedBatch
from interventions.plan.cells import CellSpec
from interventions.plan.groups import Masks
from interventions.plan.options import FLOW, AblateOptions, Op, SkipOptions, SteerOptions
from interventions.plan.plan import InterventionPlan
from models.capture import capture
from models.hooks import tracked_columns
from models.inputs import Inputs, prepare
from models.layer_ranges import LayerRange, layer_text
from models.llava import Llava
from models.sites import Site
from tasks.errors import UserError
from tasks.example import Example

BuildEdits = Callable[[Masks], Sequence[Edit]]
Reference = Inputs | Sequence[Example]
Heads = str | int | Sequence[int]
Layers = LayerRange | None


@contextmanager
def ablated(
    llava: Llava,
    site: str | Site,
    *,
    layers: LayerRange | None = None,
    tokens: str = "image",
    kind: Literal["zero", "mean", "resample"] = "mean",
    heads: Heads | None = None,
    reference: Reference | None = None,
    seed: int = 0,
) -> Iterator[None]:
    """Replace an activation by zero, its mean, or its value with another example's picture.

    Args:
        llava: The model.
        site: Such as ``"resid_post"`` or ``"blocks.3.attn.hook_z"``.
        layers: The blocks of a short name, such as ``"10-20"`` or 12; None means all.
        tokens: The positions to change.
        kind: ``"zero"``; ``"mean"`` over the positions of the group and the examples of ``reference``; ``"resample"``
            for the values of a run on ``reference`` or, if None, on the batch with its pictures exchanged.
        heads: Heads of q, k, v or z, such as 3 or ``"0+3"``; None means all.
        reference: A batch or examples; None means the batch that runs. The model runs on it without interventions.
        seed: Seed of the exchange of pictures.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> inputs = llava.inputs(np.zeros((30, 40, 3), np.uint8), "What is it?")
        >>> with ablated(llava, "resid_post", layers=1, tokens="image", kind="zero"):
        ...     resid = llava.capture(inputs, "blocks.1.hook_resid_post", tokens="image").numpy()
        >>> float(abs(resid).max())
        0.0
    """
    options = AblateOptions(kind, seed)
    plan, spec = _one_cell(llava, "ablate", (str(site),), layers, tokens, heads, options)
    given = None if reference is None or kind != "mean" else _statistics(plan, llava, reference)

    def build(masks: Masks) -> Sequence[Edit]:
        inputs = masks.inputs
        if kind == "resample":
            if isinstance(reference, Inputs):
                return _writes_from(reference, spec, masks)
            others = resampled_examples(inputs.examples, seed=seed)
            return _writes_from(prepare(llava, others, preprocess=inputs.preprocess), spec, masks)
        return _edits(plan, spec, masks, given or (_statistics(plan, llava, inputs) if kind == "mean" else None))

    with _intervening(llava, spec, build):
        yield


@contextmanager
def knocked_out(
    llava: Llava,
    *,
    source: str = "image",
    target: str = "last",
    layers: LayerRange | None = None,
    heads: Heads | None = None,
) -> Iterator[None]:
    """Attention knockout: positions of ``target`` do not attend to positions of ``source``.

    Args:
        llava: The model.
        source: The key positions.
        target: The query positions; ``"last"`` is the prompt's last position and every position after it, so that all
            generated tokens are predicted without the source.
        layers: The blocks, such as ``"10-20"`` or 12; None means all.
        heads: The query heads, such as 3 or ``"0+3"``; None means all.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> with knocked_out(llava, source="image", target="last", layers="0-3"):
        ...     text = llava.generate(np.zeros((30, 40, 3), np.uint8), "What is it?", max_new_tokens=3)
    """
    plan, spec = _one_cell(llava, "knockout", (), layers, f"{source}{FLOW}{target}", heads, None)
    with _intervening(llava, spec, partial(_edits, plan, spec)):
        yield


@contextmanager
def skipped(llava: Llava, *, layers: LayerRange, tokens: str = "image", visible: bool = True) -> Iterator[None]:
    """Skip blocks of the language model: the residual stream of some positions passes them unchanged.

    Args:
        llava: The model.
        layers: The blocks, such as ``"10-20"`` or 12.
        tokens: The positions that skip them.
        visible: Whether other positions still attend to the skipped positions in these blocks.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> inputs = llava.inputs(np.zeros((30, 40, 3), np.uint8), "What is it?")
        >>> with skipped(llava, layers="0-3", tokens="image"):
        ...     stream = llava.capture(inputs, ["blocks.0.hook_resid_pre", "blocks.3.hook_resid_post"], tokens="image")
        >>> bool((stream["resid_pre"] == stream["resid_post"]).all())
        True
    """
    plan, spec = _one_cell(llava, "skip", (), layers, tokens, None, SkipOptions(hidden=not visible))
    with _intervening(llava, spec, partial(_edits, plan, spec)):
        yield


@contextmanager
def steered(
    llava: Llava,
    site: str | Site = "resid_post",
    *,
    direction: Tensor | np.ndarray,
    alpha: int | float = 1.0,
    layers: LayerRange | None = None,
    unit: Literal["norm", "absolute"] = "norm",
    tokens: str = "all",
    reference: Reference | None = None,
) -> Iterator[None]:
    """Add ``alpha`` times a direction to an activation.

    Args:
        llava: The model.
        site: Such as ``"resid_post"``.
        direction: ``d_model``, or ``layer d_model`` with one for each layer; it is scaled to length 1.
        alpha: Length of the added vector, in ``unit``; negative steers away.
        layers: The blocks of a short name, such as ``"10-20"`` or 12; None means all.
        unit: ``"norm"`` for the mean norm of the activation over ``reference``; ``"absolute"`` for 1.
        tokens: The positions to change; ``"last+answer"`` for the prompt's last position and all generated ones.
        reference: A batch or examples; None means the batch that runs.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> with steered(llava, "resid_post", layers=2, direction=np.ones(llava.d_model), alpha=2, tokens="all"):
        ...     text = llava.generate(np.zeros((30, 40, 3), np.uint8), "What is it?", max_new_tokens=3)
    """
    options = SteerOptions("direction", float(alpha), unit)
    plan, spec = _one_cell(llava, "steer", (str(site),), layers, tokens, None, options)
    directions = {"direction": torch.as_tensor(direction)}
    given = None if reference is None else _statistics(plan, llava, reference, directions)

    def build(masks: Masks) -> Sequence[Edit]:
        found = given or DatasetStatistics(plan, directions=directions)
        if given is None and unit == "norm":
            found = _statistics(plan, llava, masks.inputs, directions)
        return _edits(plan, spec, masks, found)

    with _intervening(llava, spec, build):
        yield


@contextmanager
def patched(
    llava: Llava,
    source: Inputs,
    site: str | Site = "resid_post",
    *,
    layers: LayerRange | None = None,
    tokens: str = "image",
    heads: Heads | None = None,
) -> Iterator[None]:
    """Activation patching: values at prompt positions come from a run on ``source``.

    Args:
        llava: The model.
        source: A batch with as many examples as the batch that runs, each with as many positions in ``tokens``, matched
            in order. It is run without interventions.
        site: Such as ``"resid_post"`` or ``"blocks.3.attn.hook_z"``.
        layers: The blocks of a short name, such as ``"10-20"`` or 12; None means all.
        tokens: The prompt positions to change.
        heads: Heads of q, k, v or z, such as 3 or ``"0+3"``; None means all.

    Source: Vig et al. 2020, arXiv 2004.12265; Meng et al. 2022, arXiv 2202.05262.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> black, white = (np.full((30, 40, 3), level, np.uint8) for level in (0, 255))
        >>> with patched(llava, llava.inputs(white, "What is it?"), "resid_post", layers=1, tokens="image"):
        ...     text = llava.generate(black, "What is it?", max_new_tokens=3)
    """
    _, spec = _one_cell(llava, "patch", (str(site),), layers, tokens, heads, None)
    with _intervening(llava, spec, lambda masks: _writes_from(source, spec, masks)):
        yield


@contextmanager
def cell_applied(
    llava: Llava, plan: InterventionPlan, spec: CellSpec, statistics: DatasetStatistics, *, other: Inputs | None = None
) -> Iterator[None]:
    """Apply a cell of a plan to every run, generation included; for ``patch-sweep --metric cider``.

    Args:
        llava: The model.
        plan: The plan, with any operation but ``attribute`` and ``transplant``.
        spec: The cell.
        statistics: Over the data set, as for ``build_edits``.
        other: The batch that values are taken from: the other run of a patch, or the batch of resample ablation.
    """
    written = plan.op == "patch" or (isinstance(plan.options, AblateOptions) and plan.options.kind == "resample")

    def build(masks: Masks) -> Sequence[Edit]:
        if not written:
            return _edits(plan, spec, masks, statistics)
        assert other is not None
        return _writes_from(other, spec, masks)

    with _intervening(llava, spec, build):
        yield


@dataclass(frozen=True, eq=False)
class _Active:
    """An active intervention and the interventions that it is nested in."""

    builders: tuple[BuildEdits, ...]
    changes_language_model: bool

    @contextmanager
    def hooks(self, llava: Llava, inputs: Inputs) -> Iterator[None]:
        masks = Masks(llava, inputs.own_pictures(), None)
        cell = Cell(tuple(edit for build in self.builders for edit in build(masks)))
        with tracked_columns(llava) as columns, applied(llava, masks.inputs, cell, columns=columns):
            yield


@contextmanager
def _intervening(llava: Llava, spec: CellSpec, build: BuildEdits) -> Iterator[None]:
    outer = [active for active in llava.interventions if isinstance(active, _Active)]
    builders = (*(outer[-1].builders if outer else ()), build)
    inside = spec.part == "language_model" or any(active.changes_language_model for active in outer)
    with llava.intervening(_Active(builders, inside)):
        yield


def _edits(
    plan: InterventionPlan, spec: CellSpec, masks: Masks, statistics: DatasetStatistics | None = None
) -> Sequence[Edit]:
    """The edits of a cell on the batch that runs."""
    return EDITS[plan.op](spec, PreparedBatch(masks, statistics or DatasetStatistics(plan)))


def heads_text(heads: Heads | None) -> str | None:
    """Heads in the notation of a plan; several are changed together."""
    return heads if heads is None or isinstance(heads, str) else "+".join(map(str, np.atleast_1d(heads)))


def _one_cell(
    llava: Llava, op: Op, sites: tuple[str, ...], layers: Layers, tokens: str, heads: Heads | None, options: Any
) -> tuple[InterventionPlan, CellSpec]:
    """The plan and its single cell, with all layers in one window."""
    plan = InterventionPlan(
        op, sites=sites, layers=layer_text(layers), window="together", tokens=(tokens,), heads=heads_text(heads),
        options=options,
    )  # fmt: skip
    specs = plan.cells(llava)
    if len(specs) != 1:
        raise UserError(
            f"intervention must be one cell, got {len(specs)}. Name one site, one group and one set of heads."
        )
    return plan, specs[0]


def _statistics(
    plan: InterventionPlan, llava: Llava, reference: Reference, directions: Any = None
) -> DatasetStatistics:
    """Means and norms over a reference, of the unchanged model."""
    examples = reference.examples if isinstance(reference, Inputs) else reference
    preprocess = reference.preprocess if isinstance(reference, Inputs) else "pad"
    with llava.without_interventions():
        return collect_statistics(plan, llava, examples, directions=directions, preprocess=preprocess)


def _writes_from(source: Inputs, spec: CellSpec, masks: Masks) -> tuple[Write, ...]:
    """Writes of the activations of a run on ``source`` at the prompt positions of the group, matched in order."""
    llava, inputs, source = masks.llava, masks.inputs, source.own_pictures()
    if len(source) != len(inputs):
        raise UserError(f"source must have {len(inputs)} examples, like the batch that runs, got {len(source)}.")
    theirs = Masks(llava, source, None)
    wanted = _in_prompt(source, theirs.at("language_model", spec.tokens))
    whole = spec.tokens == "all" and spec.part != "language_model"
    values = capture(llava, source, list(spec.sites), tokens="all" if whole else wanted)
    mask = masks.at(spec.part, spec.tokens)
    rows_of: Sequence[Sequence[int]] = inputs.image_of
    if spec.part == "language_model":
        mask, rows_of = _in_prompt(inputs, mask), [[row] for row in range(len(inputs))]
    writes = []
    for site in spec.sites:
        value = torch.zeros(*mask.shape, *values[site].shape[2:], dtype=values[site].dtype, device=mask.device)
        for example, rows in enumerate(rows_of):
            index = torch.tensor(rows, dtype=torch.int64, device=mask.device)
            row, column = mask[index].nonzero(as_tuple=True)
            found = values[site][example][values.mask[site][example]]
            if len(found) != len(row):
                raise UserError(
                    f"source must have {len(row)} positions of {spec.tokens!r} in example {example}, as the batch "
                    f"that runs, got {len(found)}."
                )
            value[index[row], column] = found
        writes.append(Write(site, mask, value, spec.heads))
    return tuple(writes)


def _in_prompt(inputs: Inputs, mask: Tensor) -> Tensor:
    stops = torch.tensor([layout.prompt_stop for layout in inputs.layout], device=mask.device)
    return mask & (torch.arange(mask.shape[1], device=mask.device) < stops[:, None])
