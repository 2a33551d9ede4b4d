"""Run every cell of a plan on one batch of pairs: ``run_batch``, or ``run_transplants`` for transplants."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from interventions.batch_values import BatchValues
from interventions.engines.base_runs import Base, at_slots, plain_logits, prepare_base
from interventions.engines.engine import run_cells
from interventions.metrics import Readout, find_readout, measure
from interventions.operations.ablation import resampled_examples
from interventions.operations.attribution import attribute
from interventions.operations.build_edits import build_edits
from interventions.operations.choose_runs import choose_runs, corrupt_cell
from interventions.operations.dataset_statistics import DatasetStatistics
from interventions.operations.transplant import transplanted
from interventions.pairs import Pair
from interventions.plan.cells import CellSpec
from interventions.plan.options import AblateOptions, PatchOptions, TransplantOptions
from interventions.plan.plan import InterventionPlan
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.pixels import Preprocess
from models.precision import fast_bfloat16
from tasks.example import Example


def resampled_pairs(plan: InterventionPlan, pairs: Sequence[Pair]) -> list[Pair] | None:
    """The pairs with another pair's clean picture, for resample ablation; None for other plans."""
    if not isinstance(plan.options, AblateOptions) or plan.options.kind != "resample":
        return None
    others = resampled_examples([pair.clean for pair in pairs], seed=plan.options.seed)
    return [replace(pair, clean=other) for pair, other in zip(pairs, others, strict=True)]


def run_batch(
    llava: Llava,
    statistics: DatasetStatistics,
    specs: Sequence[CellSpec],
    pairs: Sequence[Pair],
    *,
    resampled: Sequence[Pair] | None = None,
    preprocess: Preprocess = "pad",
    exact: bool = False,
    on_cell: Callable[[], None] = lambda: None,
) -> BatchValues:
    """Run every cell on a batch of pairs; ``exact`` also patches exactly if the plan is attribution.

    ``resampled`` is the batch's part of ``resampled_pairs``; ``on_cell`` is called after each cell. If the corruption
    is noise, patched cells and the corrupt run have means over its seeds.
    """
    plan = statistics.plan
    examples = [pair.clean for pair in pairs]
    clean = _batch(llava, examples, preprocess)
    runs = choose_runs(
        plan,
        clean,
        pair=_batch(llava, [pair.corrupt for pair in pairs], preprocess) if plan.corruption.kind == "pair" else None,
        resampled=None if resampled is None else _batch(llava, [pair.clean for pair in resampled], preprocess),
    )
    readout = find_readout(llava, clean, [pair.foil for pair in pairs])
    base = prepare_base(llava, runs.inputs, runs.other, readout=readout.columns, engine=plan.engine)
    clean_logits = _logits_of(llava, base, clean, readout)

    def score(logits: Tensor) -> Tensor:
        return measure(logits, readout, plan.metrics, clean=clean_logits)

    def read(logits: Tensor) -> Tensor:
        return score(logits).cpu()

    def read_cell(logits: Tensor) -> Tensor:
        on_cell()
        return read(logits)

    noisy = plan.corruption.kind == "noise"
    estimates = plan.op == "attribute"
    corrupts: list[Tensor] = []
    values: list[Tensor] = []
    patched: list[Tensor] = []
    for number, seed in enumerate(plan.corruption.seeds if noisy else (0,)):
        assert runs.corrupt is not None  # every batch has pairs
        if noisy:
            noise = corrupt_cell(llava, runs.corrupt, statistics, seed=seed)
            corrupts += run_cells(llava, base, [noise], read, engine=plan.engine)
        else:
            corrupts.append(read(_logits_of(llava, base, runs.corrupt, readout)))
        if number and not (noisy and isinstance(plan.options, PatchOptions)):
            continue  # another draw of noise only changes the corrupt run
        if estimates:
            found = attribute(
                llava, runs.inputs, runs.other, specs, examples, statistics, score, readout=readout.columns, seed=seed
            )
            values.append(found.estimated.transpose(0, 1).cpu())
        if exact or not estimates:
            cells = build_edits(specs, llava, runs.inputs, examples, statistics, seed=seed)
            patched.append(torch.stack(run_cells(llava, base, cells, read_cell, engine=plan.engine)))
    means = [torch.stack(part).mean(0) if part else None for part in (values, patched)]
    shown, compared = means if estimates else (means[1], None)
    assert shown is not None  # there is at least one seed
    return BatchValues(shown, read(clean_logits), torch.stack(corrupts).mean(0), compared)


def run_transplants(
    llava: Llava,
    donor: Llava,
    plan: InterventionPlan,
    specs: Sequence[CellSpec],
    pairs: Sequence[Pair],
    *,
    preprocess: Preprocess = "pad",
    on_cell: Callable[[], None] = lambda: None,
) -> BatchValues:
    """Run every mixture of two checkpoints on the clean examples of a batch.

    The donor's run is the clean run; the run of ``llava``, the recipient, is the corrupt run.
    """
    inputs = _batch(llava, [pair.clean for pair in pairs], preprocess)
    readout = find_readout(llava, inputs, [pair.foil for pair in pairs])
    of_donor = plain_logits(donor, inputs, readout.columns)

    def read(logits: Tensor) -> Tensor:
        return measure(logits, readout, plan.metrics, clean=of_donor).cpu()

    options, values = plan.options, []
    assert isinstance(options, TransplantOptions)
    for spec in specs:
        with transplanted(llava, donor, spec.layers, head=options.head, projector=options.projector) as mixture:
            values.append(read(plain_logits(mixture, inputs, readout.columns)))
        on_cell()
    return BatchValues(torch.stack(values), read(of_donor), read(plain_logits(llava, inputs, readout.columns)))


def _batch(llava: Llava, examples: Sequence[Example], preprocess: Preprocess) -> Inputs:
    return prepare(llava, examples, preprocess=preprocess, answers=True)


def _logits_of(llava: Llava, base: Base, inputs: Inputs, readout: Readout) -> Tensor:
    """The logits of an unchanged run, taken from the base runs if they include it."""
    if inputs is base.inputs:
        return base.logits
    if inputs is not base.other or base.prefix is None or base.prefix.other is None:
        return plain_logits(llava, inputs, readout.columns)
    rows, slots = readout.used.nonzero(as_tuple=True)
    with torch.inference_mode(), fast_bfloat16():
        found = llava.unembed(base.prefix.other.resid[-1][rows, readout.columns[rows, slots]]).float()
    return at_slots(readout.columns, found)
