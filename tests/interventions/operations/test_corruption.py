"""The corrupt run: blank pictures and noise that neither batches nor their order change."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from interventions.engines.edits import Cell
from interventions.engines.engine import prepare_base, run_cells
from interventions.engines.names import EngineName
from interventions.operations.build_edits import build_edits
from interventions.operations.choose_runs import choose_runs, corrupt_cell
from interventions.operations.corruption import (
    EMBEDDINGS,
    blank_pictures,
    draw_noise,
    embedding_deviation,
    noise_edit,
    noised,
)
from interventions.operations.dataset_statistics import DatasetStatistics, collect_statistics
from interventions.plan.options import Corruption, PatchOptions
from interventions.plan.plan import InterventionPlan
from models.capture import capture
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.pixels import image_processor
from tasks.example import Picture
from tests.conftest import make_examples

ENGINES: tuple[EngineName, ...] = ("full", "incremental")


def last_columns(inputs: Inputs) -> Tensor:
    return torch.tensor([[layout.prompt_stop - 1] for layout in inputs.layout])


def run(llava: Llava, inputs: Inputs, other: Inputs | None, cells: list[Cell], engine: EngineName) -> list[Tensor]:
    base = prepare_base(llava, inputs, other, readout=last_columns(inputs), engine=engine)
    return run_cells(llava, base, [Cell(()), *cells], lambda logits: logits, engine=engine)


def close(got: Tensor, expected: Tensor) -> None:
    assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))  # order of summation


def differs(got: Tensor, expected: Tensor) -> bool:
    return float((got - expected).abs().max()) > 1e-3 * float(expected.abs().max())


def test_a_blank_picture_is_one_of_the_mean_colour(llava: Llava) -> None:
    examples = make_examples(2, n_pictures=(1, 2))
    inputs = prepare(llava, examples)
    blank = blank_pictures(inputs)
    colour = tuple(round(255 * channel) for channel in image_processor(llava).image_mean)
    painted = [
        replace(e, pictures=tuple(Picture(p.key, lambda: Image.new("RGB", (28, 28), colour)) for p in e.pictures))
        for e in examples
    ]
    expected = prepare(llava, painted).pixel_values
    assert expected is not None and blank.pixel_values is not None and inputs.pixel_values is not None
    assert len(expected) == 1  # equal pictures have one row
    expected = expected.expand_as(blank.pixel_values)
    assert_close(blank.pixel_values, expected, rtol=0, atol=0.5 / 255 / 0.26)  # colours are whole numbers
    assert inputs.pixel_values.abs().max() > 1
    assert blank.image_of == inputs.image_of


def test_examples_without_pictures_cannot_be_corrupted(llava: Llava) -> None:
    examples = [*make_examples(1), replace(make_examples(1)[0], id="text", pictures=())]
    with pytest.raises(ValueError, match="examples must have a picture to corrupt, got none in row 1"):
        blank_pictures(prepare(llava, examples))
    with pytest.raises(ValueError, match="examples must have a picture to corrupt, got none in row 0"):
        draw_noise(llava, prepare(llava, examples[1:]), deviation=1.0, seed=0)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_deviation_is_over_tokens_dimensions_and_distinct_pictures(llava: Llava, batch_size: int) -> None:
    examples = make_examples(4, n_questions=2)
    pixels = prepare(llava, examples).pixel_values
    assert pixels is not None and len(pixels) == 2
    with torch.no_grad():
        features = llava.image_features(pixels)
    got = embedding_deviation(llava, examples, batch_size=batch_size)
    assert got == pytest.approx(float(features.std(correction=0)), rel=1e-5)


def test_noise_belongs_to_a_picture_and_a_seed_and_has_the_deviation_asked_for(llava: Llava) -> None:
    examples = make_examples(3)
    whole = draw_noise(llava, prepare(llava, examples), deviation=0.5, seed=1)
    alone = draw_noise(llava, prepare(llava, examples[1:2]), deviation=0.5, seed=1)
    assert torch.equal(whole[1:2], alone)
    assert not torch.equal(whole, draw_noise(llava, prepare(llava, examples), deviation=0.5, seed=2))
    assert not torch.equal(whole[0], whole[1])
    assert float(whole.std()) == pytest.approx(0.5, rel=0.05)  # 2,304 numbers: 1.5 % is one standard error


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("n_questions", [1, 2])
def test_noise_as_an_edit_is_noise_in_a_plain_forward(llava: Llava, engine: EngineName, n_questions: int) -> None:
    inputs = prepare(llava, make_examples(4, n_pictures=(2, 1), n_questions=n_questions))
    noise = draw_noise(llava, inputs, deviation=1.0, seed=0)
    clean, got = run(llava, inputs, None, [Cell((noise_edit(noise),))], engine)
    with noised(llava, inputs, noise), torch.no_grad():
        logits = llava.model(**inputs.model_kwargs()).logits
        captured = capture(llava, inputs, [EMBEDDINGS], tokens="image")[EMBEDDINGS]
    expected = logits[torch.arange(4)[:, None], last_columns(inputs)]
    assert differs(expected, clean)
    close(got, expected)
    without = capture(llava, inputs, [EMBEDDINGS], tokens="image")[EMBEDDINGS]
    first = [pictures[0] for pictures in inputs.image_of]
    assert_close((captured - without)[:, : llava.n_image_tokens], noise[first], rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("site", ["resid_pre@0", "projector:out"])
def test_denoising_the_image_undoes_the_noise_and_noising_it_gives_the_noisy_run(
    llava: Llava, engine: EngineName, site: str
) -> None:
    examples = make_examples(3)
    inputs = prepare(llava, examples)
    plan = InterventionPlan(
        "patch", sites=(site,), tokens=("image",), corruption=Corruption("noise", seeds=(5,)), engine=engine
    )
    context = collect_statistics(plan, llava, examples)
    runs = choose_runs(plan, inputs)
    cells = build_edits(plan.cells(llava), llava, runs.inputs, examples, context)
    clean, corrupt, denoised = run(
        llava, runs.inputs, runs.other, [corrupt_cell(llava, inputs, context), *cells], engine
    )
    assert differs(clean, corrupt)
    close(denoised, clean)
    backward = replace(plan, options=PatchOptions("noise"))
    runs = choose_runs(backward, inputs)
    cells = build_edits(backward.cells(llava), llava, runs.inputs, examples, replace(context, plan=backward))
    close(run(llava, runs.inputs, runs.other, cells, engine)[1], corrupt)


@pytest.mark.parametrize("engine", ENGINES)
def test_noising_in_the_middle_is_writing_the_noisy_runs_values(llava: Llava, engine: EngineName) -> None:
    examples = make_examples(3)
    inputs = prepare(llava, examples, padding_side="left")
    plan: Any = InterventionPlan(
        "patch",
        sites=("z",),
        layers="1",
        tokens=("question", "last"),
        heads="2",
        options=PatchOptions("noise"),
        corruption=Corruption("noise", scale=2.0),
        engine=engine,
    )
    context = collect_statistics(plan, llava, examples)
    cells = build_edits(plan.cells(llava), llava, inputs, examples, context)
    with noised(llava, inputs, draw_noise(llava, inputs, deviation=2.0 * (context.deviation or 0), seed=0)):
        found = capture(llava, inputs, [plan.cells(llava)[0].sites[0]], tokens="last")
    write: Any = cells[1].edits[0]
    assert_close(write.value[write.mask], next(iter(found.values()))[:, 0])
    clean, question, _ = run(llava, inputs, None, cells, engine)
    assert float((question - clean).abs().max()) > 1e-5


def test_a_blank_plan_patches_between_the_blank_and_the_clean_run(llava: Llava) -> None:
    inputs = prepare(llava, make_examples(2))
    plan = InterventionPlan("patch", sites=("resid_pre",), tokens=("image",), corruption=Corruption("blank"))
    runs = choose_runs(plan, inputs)
    assert runs.other is inputs and runs.inputs is runs.corrupt
    assert runs.corrupt is not None and runs.corrupt.pixel_values is not None
    assert not runs.corrupt.pixel_values.any()
    assert corrupt_cell(llava, inputs, DatasetStatistics(plan)).edits == ()
    seeded = [
        corrupt_cell(
            llava, inputs, DatasetStatistics(replace(plan, corruption=Corruption("noise")), deviation=1.0), seed=seed
        )
        for seed in (0, 1)
    ]
    values: list[Any] = [cell.edits[0] for cell in seeded]
    assert not torch.equal(values[0].value, values[1].value)
