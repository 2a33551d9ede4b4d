"""What a patch sweep does: which cells on which pairs in which batches, and how a batch is run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from interventions.batch import BatchValues, resampled_pairs, run_batch, run_transplants
from interventions.config import PatchConfig
from interventions.metrics import answer_tokens
from interventions.operations.dataset_statistics import collect_statistics
from interventions.operations.steering import fitting_direction
from interventions.pairs import SCENES, Pairs, load_pairs
from interventions.plan.groups import Masks
from interventions.plan.plan import FLOW, CellSpec, SteerOptions, TransplantOptions
from models.inputs import prepare
from models.llava import Llava
from records.model import other_model
from tasks.errors import user_errors
from tasks.prompts import vicuna_v1


@dataclass(frozen=True, eq=False)
class Work:
    """What is run.

    Args:
        llava: The model; the recipient of transplants.
        donor: Of transplants.
        pairs: All of them.
        specs: All cells.
        batches: For each batch the numbers of its pairs.
    """

    llava: Llava
    donor: Llava | None
    pairs: Pairs
    specs: tuple[CellSpec, ...]
    batches: tuple[range, ...]

    def path(self, folder: Path, batch: int) -> Path:
        """The file of a batch."""
        return folder / "cells" / f"{batch:05d}.safetensors"

    def read(self, config: PatchConfig, batch: int) -> BatchValues | None:
        """What a batch gave; None where it has not been run."""
        shape = len(self.specs), len(config.plan.metrics), len(self.batches[batch])
        return BatchValues.read(self.path(config.folder, batch), shape, exact=is_compared(config, batch))


def is_compared(config: PatchConfig, batch: int) -> bool:
    """Whether a batch is patched exactly as well as by attribution: the first one is, to show the estimate's error."""
    return config.plan.op == "attribute" and batch == 0


def plan_work(
    config: PatchConfig, pairs: Pairs, llava: Llava, device: str, directions: Mapping[str, Tensor] | None = None
) -> Work:
    """The cells and the pairs, of scenes at the model's size.

    Raises:
        UserError: If the model lacks a site, a layer or a head, a pair of the first batch a token group, a site its
            direction, or resampling a second picture.
    """
    question = vicuna_v1("?")

    def length(answer: str) -> int:
        return len(answer_tokens(llava, question, answer))

    options = config.plan.options
    donor = None
    if isinstance(options, TransplantOptions):
        donor = other_model(config.model, options.donor, device=device, seed=config.seed)
    with user_errors(ValueError):
        specs = tuple(config.plan.cells(llava))
        if config.pairs.spec == SCENES:
            pairs = load_pairs(config.pairs, seed=config.seed, size=llava.image_size, length=length)
        n = len(pairs.pairs)
        batches = tuple(range(at, min(at + config.batch_size, n)) for at in range(0, n, config.batch_size))
        first = [pairs.pairs[number].clean for number in batches[0]]
        masks = Masks(llava, prepare(llava, first, preprocess=config.pairs.preprocess, answers=True), first)
        for part, group in {(spec.part, end) for spec in specs if spec.tokens for end in spec.tokens.split(FLOW)}:
            masks.at(part, group)
        if isinstance(options, SteerOptions):
            for site in sorted({site for spec in specs for site in spec.sites}):
                fitting_direction(directions or {}, options.direction, site, masks)
        resampled_pairs(config.plan, pairs.pairs)
    return Work(llava, donor, pairs, specs, batches)


def batch_runner(
    config: PatchConfig, work: Work, directions: Mapping[str, Tensor] | None
) -> Callable[[range], BatchValues]:
    """What runs the pairs of a batch, once what it needs of the whole data set is known.

    Raises:
        UserError: If the plan needs something that the data or the directions lack.
    """
    llava, plan, pairs, preprocess = work.llava, config.plan, work.pairs.pairs, config.pairs.preprocess
    if work.donor is not None:
        donor = work.donor
        return lambda batch: run_transplants(
            llava, donor, plan, work.specs, [pairs[i] for i in batch], preprocess=preprocess
        )
    with user_errors(ValueError):
        context = collect_statistics(
            plan, llava, [pair.clean for pair in pairs], directions=directions, batch_size=config.batch_size,
            preprocess=preprocess,
        )  # fmt: skip
        resampled = resampled_pairs(plan, pairs)

    def run(batch: range) -> BatchValues:
        others = None if resampled is None else [resampled[i] for i in batch]
        exact = is_compared(config, batch.start // config.batch_size)
        return run_batch(
            llava, context, work.specs, [pairs[i] for i in batch], resampled=others, preprocess=preprocess, exact=exact
        )

    return run
