"""One batch of pairs through every cell of a plan, and what was read on the disk: ``run_batch``, ``BatchValues``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from interventions.engines.base_runs import Base, at_slots, plain_logits
from interventions.engines.engine import prepare_base, run_cells
from interventions.metrics import Readout, find_readout, measure
from interventions.operations.ablation import resampled_examples
from interventions.operations.attribution import attribute
from interventions.operations.build_edits import Runs, build_edits, choose_runs, corrupt_cell
from interventions.operations.dataset_statistics import DatasetStatistics
from interventions.operations.transplant import transplanted
from interventions.pairs import Pair
from interventions.plan.plan import AblateOptions, CellSpec, InterventionPlan, PatchOptions, TransplantOptions
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.pixels import Preprocess
from models.precision import fast_bfloat16
from records.manifest import write_atomically
from tasks.example import Example


@dataclass(frozen=True, eq=False)
class BatchValues:
    """Every metric of every pair of a batch.

    Args:
        values: In each cell.
        clean: In the clean run.
        corrupt: In the corrupt run.
        exact: Where values are estimates of attribution patching: what exact patching gives; None where nobody asked.
    """

    values: Float[Tensor, "cell metric example"]
    clean: Float[Tensor, "metric example"]
    corrupt: Float[Tensor, "metric example"]
    exact: Float[Tensor, "cell metric example"] | None = None

    def write(self, path: Path) -> None:
        """Commits the batch: the file is whole or not there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"values": self.values, "clean": self.clean, "corrupt": self.corrupt}
        if self.exact is not None:
            tensors["exact"] = self.exact
        write_atomically(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    @staticmethod
    def read(path: Path, shape: tuple[int, int, int], *, exact: bool = False) -> "BatchValues | None":
        """The batch in a file; None if there is none of ``shape`` (cells, metrics, examples), with or without exact."""
        try:
            found = load_file(path)
        except (OSError, SafetensorError):
            return None
        wanted = {"values": shape, "clean": shape[1:], "corrupt": shape[1:], **({"exact": shape} if exact else {})}
        if {name: tuple(tensor.shape) for name, tensor in found.items()} != wanted:
            return None
        return BatchValues(**found)


def unchanged_run(plan: InterventionPlan) -> str:
    """``"corrupt"`` where the plan changes the corrupt run, or what stands for it, else ``"clean"``."""
    denoises = isinstance(plan.options, PatchOptions) and plan.options.direction == "denoise"
    return "corrupt" if denoises or plan.op == "transplant" else "clean"


def resampled_pairs(plan: InterventionPlan, pairs: Sequence[Pair]) -> list[Pair] | None:
    """The pairs with another one's picture as the clean one, for resample ablation; None for other plans.

    Raises:
        ValueError: See ``resampled_examples``.
    """
    if not isinstance(plan.options, AblateOptions) or plan.options.kind != "resample":
        return None
    others = resampled_examples([pair.clean for pair in pairs], seed=plan.options.seed)
    return [replace(pair, clean=other) for pair, other in zip(pairs, others, strict=True)]


def run_batch(
    llava: Llava,
    context: DatasetStatistics,
    specs: Sequence[CellSpec],
    pairs: Sequence[Pair],
    *,
    resampled: Sequence[Pair] | None = None,
    preprocess: Preprocess = "pad",
    exact: bool = False,
) -> BatchValues:
    """Every cell on a batch of pairs.

    Where noise corrupts, values of patched cells and of the corrupt run are means over its seeds.

    Args:
        llava: The model.
        context: Holds the plan.
        specs: Its cells.
        pairs: The batch.
        resampled: The same pairs of ``resampled_pairs``.
        preprocess: See ``prepare``.
        exact: Of op ``"attribute"``: whether to patch too, for comparison.

    Raises:
        ValueError: If a cell cannot be run on the batch.
    """
    plan = context.plan
    examples = [pair.clean for pair in pairs]
    clean = prepare(llava, examples, preprocess=preprocess, answers=True)
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

    noisy = plan.corruption.kind == "noise"
    estimates = plan.op == "attribute"
    corrupts: list[Tensor] = []
    values: list[Tensor] = []
    patched: list[Tensor] = []
    for number, seed in enumerate(plan.corruption.seeds if noisy else (0,)):
        corrupts.append(_read_corrupt(llava, base, runs, context, seed, readout, read))
        if number and not (noisy and isinstance(plan.options, PatchOptions)):
            continue  # another draw of noise changes the corrupt run alone
        if estimates:
            found = attribute(
                llava, runs.inputs, runs.other, specs, examples, context, score, readout=readout.columns, seed=seed
            )
            values.append(found.estimated.transpose(0, 1).cpu())
        if exact or not estimates:
            cells = build_edits(specs, llava, runs.inputs, examples, context, seed=seed)
            patched.append(torch.stack(run_cells(llava, base, cells, read, engine=plan.engine)))
    means = [torch.stack(part).mean(0) if part else None for part in (values, patched)]
    shown, compared = means if estimates else (means[1], None)
    assert shown is not None  # there is a seed
    return BatchValues(shown, read(clean_logits), torch.stack(corrupts).mean(0), compared)


def run_transplants(
    llava: Llava,
    donor: Llava,
    plan: InterventionPlan,
    specs: Sequence[CellSpec],
    pairs: Sequence[Pair],
    *,
    preprocess: Preprocess = "pad",
) -> BatchValues:
    """Every mixture of two checkpoints on the clean examples of a batch.

    The donor's run stands for the clean one, the recipient's for the corrupt one.

    Args:
        llava: The recipient.
        donor: See ``transplanted``.
        plan: Of op ``"transplant"``.
        specs: Its cells.
        pairs: The batch; corrupt examples are not run.
        preprocess: See ``prepare``.

    Raises:
        ValueError: If the two checkpoints are not of one architecture.
    """
    assert isinstance(plan.options, TransplantOptions)
    inputs = _batch(llava, [pair.clean for pair in pairs], preprocess)
    readout = find_readout(llava, inputs, [pair.foil for pair in pairs])
    taught = plain_logits(donor, inputs, readout.columns)

    def read(logits: Tensor) -> Tensor:
        return measure(logits, readout, plan.metrics, clean=taught).cpu()

    values = []
    for spec in specs:
        comes = {"head": plan.options.head, "projector": plan.options.projector}
        with transplanted(llava, donor, spec.layers, **comes) as mixture:
            values.append(read(plain_logits(mixture, inputs, readout.columns)))
    return BatchValues(torch.stack(values), read(taught), read(plain_logits(llava, inputs, readout.columns)))


def _batch(llava: Llava, examples: Sequence[Example], preprocess: Preprocess) -> Inputs:
    return prepare(llava, examples, preprocess=preprocess, answers=True)


def _logits_of(llava: Llava, base: Base, inputs: Inputs, readout: Readout) -> Tensor:
    """The logits of an unchanged run, from what the base runs left behind where they are among them."""
    if inputs is base.inputs:
        return base.logits
    if inputs is not base.other or base.prefix is None or base.prefix.other is None:
        return plain_logits(llava, inputs, readout.columns)
    rows, slots = readout.used.nonzero(as_tuple=True)
    with torch.inference_mode(), fast_bfloat16():
        found = llava.unembed(base.prefix.other.resid[-1][rows, readout.columns[rows, slots]]).float()
    return at_slots(readout.columns, found)


def _read_corrupt(
    llava: Llava,
    base: Base,
    runs: Runs,
    context: DatasetStatistics,
    seed: int,
    readout: Readout,
    read: Callable[[Tensor], Tensor],
) -> Tensor:
    """The metrics of the corrupt run."""
    assert runs.corrupt is not None  # there is always a pair
    if context.plan.corruption.kind != "noise":
        return read(_logits_of(llava, base, runs.corrupt, readout))
    cell = corrupt_cell(llava, runs.corrupt, context, seed=seed)
    return run_cells(llava, base, [cell], read, engine=context.plan.engine)[0]
