"""Captions that are generated under every cell of a plan, scored by CIDEr-D against people's captions.

Generation runs the whole model for every cell, so it takes far longer than metrics of logits. A patch changes the
prompt; a knockout, an ablation or a steered direction also changes generated positions, as in
``interventions.in_memory.context_managers``.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from interventions.batch_values import BatchValues
from interventions.in_memory.context_managers import cell_applied
from interventions.operations.choose_runs import choose_runs
from interventions.operations.dataset_statistics import DatasetStatistics
from interventions.pairs import Pair
from interventions.plan.cells import CellSpec
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.pixels import Preprocess
from tasks.errors import UserError
from tasks.example import Example
from tasks.rules.cider import Cider


def references(examples: Sequence[Example]) -> Cider:
    """The captions of the clean pictures; weights of phrases come from all of them.

    Raises:
        UserError: If a picture has no caption, or there are fewer than two pictures, so that all weights are 0.

    Example:
        >>> texts = "A red cat sits.", "Two dogs."
        >>> asked = [Example(str(i), (), "?", "", str(i), captions=(text,)) for i, text in enumerate(texts)]
        >>> references(asked).score("A red cat sits.", 0)
        10.0
    """
    without = next((example.id for example in examples if not example.captions), None)
    if without is not None:
        raise UserError(
            f"data must have captions for metric cider, got none for {without!r}. Use benchmark:caption=FOLDER, or a "
            "file with the column captions."
        )
    if len(examples) < 2:
        raise UserError("metric cider must have at least two pairs, got one. All weights of phrases are 0 then.")
    return Cider([example.captions for example in examples])


def run_captions(
    llava: Llava,
    statistics: DatasetStatistics,
    specs: Sequence[CellSpec],
    pairs: Sequence[Pair],
    cider: Cider,
    numbers: Sequence[int],
    *,
    resampled: Sequence[Pair] | None = None,
    new_tokens: int,
    preprocess: Preprocess = "pad",
    on_cell: Callable[[], None] = lambda: None,
) -> BatchValues:
    """CIDEr-D of the captions under every cell, of the clean run and of the corrupt run.

    Args:
        llava: The model.
        statistics: Of the plan, over the data set.
        specs: The cells.
        pairs: The pairs of the batch.
        cider: The captions of all clean pictures.
        numbers: The pairs' numbers in ``cider``.
        resampled: The batch's part of ``resampled_pairs``.
        new_tokens: Largest number of tokens of a caption.
        preprocess: As for ``prepare``.
        on_cell: Called after each cell.
    """
    plan = statistics.plan
    clean = _prompts(llava, [pair.clean for pair in pairs], preprocess)
    runs = choose_runs(
        plan,
        clean,
        pair=_prompts(llava, [pair.corrupt for pair in pairs], preprocess) if plan.corruption.kind == "pair" else None,
        resampled=None if resampled is None else _prompts(llava, [pair.clean for pair in resampled], preprocess),
    )
    assert runs.corrupt is not None  # every batch has pairs

    def score(inputs: Inputs) -> Tensor:
        tokens = llava.generate_tokens(inputs, new_tokens)
        texts = llava.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return torch.tensor([[cider.score(text, number) for text, number in zip(texts, numbers, strict=True)]])

    values = []
    for spec in specs:
        with cell_applied(llava, plan, spec, statistics, other=runs.other):
            values.append(score(runs.inputs))
        on_cell()
    return BatchValues(torch.stack(values), score(clean), score(runs.corrupt))


def _prompts(llava: Llava, examples: Sequence[Example], preprocess: Preprocess) -> Inputs:
    return prepare(llava, examples, preprocess=preprocess)
