"""Choose the run that a plan changes, and the run that it takes values from."""

from typing import Literal, NamedTuple

from interventions.engines.edits import Cell
from interventions.operations.corruption import blank_pictures, noise_edit
from interventions.operations.dataset_statistics import DatasetStatistics
from interventions.plan.options import AblateOptions, PatchOptions
from interventions.plan.plan import InterventionPlan
from models.inputs import Inputs
from models.llava import Llava
from tasks.errors import UserError


class Runs(NamedTuple):
    """The batch that is changed, the batch that values are taken from (None: no values), and the corrupt batch.

    With noise, ``corrupt`` is the clean batch, to which ``corrupt_cell`` adds the noise.
    """

    inputs: Inputs
    other: Inputs | None
    corrupt: Inputs | None


def unchanged_run(plan: InterventionPlan) -> Literal["clean", "corrupt"]:
    """Name the run that the plan changes; the recipient of a transplant counts as corrupt."""
    denoises = isinstance(plan.options, PatchOptions) and plan.options.direction == "denoise"
    return "corrupt" if denoises or plan.op == "transplant" else "clean"


def choose_runs(
    plan: InterventionPlan, clean: Inputs, *, pair: Inputs | None = None, resampled: Inputs | None = None
) -> Runs:
    """The batch that a plan changes, and the other batch.

    Args:
        plan: The plan, with its operation, direction and corruption.
        clean: The clean batch.
        pair: The corrupt examples of the pairs, prepared with the clean answers; if None, a plan that does not patch
            has no corrupt run.
        resampled: The batch of ``resampled_examples``, for resample ablation.

    Raises:
        UserError: If a batch that the plan needs is missing.
    """
    kind = plan.corruption.kind
    corrupt = pair if kind == "pair" else (blank_pictures(clean) if kind == "blank" else clean)
    if isinstance(plan.options, PatchOptions):
        if corrupt is None:
            raise UserError(f"pair must be given for op {plan.op!r}, got None. Or corrupt by 'blank' or 'noise'.")
        if plan.options.direction == "denoise":
            return Runs(corrupt, clean, corrupt)
        return Runs(clean, None if kind == "noise" else corrupt, corrupt)
    if isinstance(plan.options, AblateOptions) and plan.options.kind == "resample":
        if resampled is None:
            raise UserError("resampled must be given for resample ablation, got None. resampled_examples makes them.")
        return Runs(clean, resampled, corrupt)
    return Runs(clean, None, corrupt)


def corrupt_cell(llava: Llava, inputs: Inputs, statistics: DatasetStatistics, *, seed: int | None = None) -> Cell:
    """The edits that make ``Runs.corrupt`` corrupt: noise on its image embeddings, or none."""
    if statistics.plan.corruption.kind != "noise":
        return Cell(())
    return Cell((noise_edit(statistics.draw_noise(llava, inputs, seed)),))


def check_positions(inputs: Inputs, other: Inputs) -> None:
    """Raise ``UserError`` unless two batches have the same positions and the same number of pictures."""
    counts = [[len(pictures) for pictures in batch.image_of] for batch in (inputs, other)]
    positions = [(batch.position_ids.tolist(), batch.attention_mask.tolist()) for batch in (inputs, other)]
    if counts[0] != counts[1] or positions[0] != positions[1]:
        raise UserError(
            f"other must have the positions of inputs, got batches of {tuple(inputs.input_ids.shape)} and "
            f"{tuple(other.input_ids.shape)} with {sum(counts[0])} and {sum(counts[1])} pictures. "
            "Pairs need prompts and answers of equal length."
        )
