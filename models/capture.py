"""One run -> ``Activations``: the values at the sites and tokens asked for, and no more work than they need.

``capture(llava, inputs, sites, tokens="image", pool="mean")`` handles one batch, ``capture_examples`` a data set of any
size in constant memory. Attention is causal, so a row is cut behind its last wanted position, rows that agree up to
there are run once, each distinct picture passes the vision tower once, the run stops behind the last wanted layer, and
no logits are computed. All of this is exact.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from models.activations import Activations, Captured
from models.adapter import Adapter
from models.capture_plan import CapturePlan, plan_capture, wanted_positions
from models.hooks import Pool, Recorder
from models.inputs import Inputs, PaddingSide, prepare
from models.pixels import Preprocess
from models.precision import fast_bfloat16
from models.sites import PARTS, Part, Site, check_site
from models.tokens import BoxGroup, Group, PatchGroup
from tasks.errors import UserError
from tasks.example import Example

_POOLS = ("none", "mean", "max", "box")
# Examples in one batch per row that is run: bounds memory when thousands of questions share a picture.
_SHARERS = 16


def capture(
    llava: Adapter,
    inputs: Inputs,
    sites: Sequence[Site],
    *,
    tokens: Group | Bool[Tensor, "batch pos"] = "all",
    pool: Pool = "none",
    dtype: torch.dtype | None = None,
    examples: Sequence[Example] | None = None,
    changed: Callable[[Inputs], AbstractContextManager[None]] | None = None,
) -> Activations:
    """The activations of one batch.

    Args:
        llava: The model.
        inputs: The batch.
        sites: At least one. In the vision tower and the projector, tokens are the patches of the wanted image tokens;
            for ``"all"`` every token of every picture of the example, the class token included.
        tokens: A token group, or a mask of your own.
        pool: Over the wanted positions: the mean (summed in float32), the maximum, or ``"box"``, the mean over those
            that are patches in the focus box; ``"none"`` keeps each.
        dtype: Of the values; None keeps the run's.
        examples: Those of the batch, for the group ``"object"``, ``pool="box"`` and errors; None takes those in
            ``inputs``.
        changed: Interventions on the run, as a context manager for the whole forward of a batch; see ``Llava.capture``.

    Raises:
        ValueError: If there is no site or one that the model lacks, or an example has no wanted position for a site.
        CaptureError: If a site did not fire, or a value is NaN or infinite.
    """
    if not sites:
        raise UserError("sites must hold at least one site, got none. all_sites(llava) lists what there is.")
    if pool not in _POOLS:
        raise UserError(f"pool must be one of {', '.join(_POOLS)}, got {pool!r}. Pick one of them.")
    if dtype is not None and not dtype.is_floating_point:
        raise UserError(f"dtype must be floating-point, got {dtype}. Activations are real numbers.")
    for site in sites:
        check_site(site, llava)
    if changed is not None:
        inputs = inputs.own_pictures()  # interventions may differ between examples that show one picture
        if any(site.name == "pattern" for site in sites):
            raise UserError("sites must not be patterns while an intervention is active. Capture them without it.")
    examples = examples or inputs.examples or None
    wanted = wanted_positions(llava, inputs, tokens, pool, examples)
    whole_pictures = isinstance(tokens, str) and tokens == "all" and pool != "box"
    plan = plan_capture(llava, inputs, sites, wanted, whole_pictures=whole_pictures, whole_rows=changed is not None)
    names = (
        [e.id for e in examples] if examples is not None else [f"row {row} of the batch" for row in range(len(inputs))]
    )
    # In the order of the forward pass, so that an error names the first site that goes wrong.
    by_part = {part: sorted({s for s in sites if s.part == part}) for part in PARTS if part in plan.selections}
    collected: dict[Site, Tensor] = {}
    with torch.inference_mode(), fast_bfloat16():
        recorders = {part: Recorder(llava, by_part[part], plan.selections[part], pool) for part in by_part}
        if changed is not None:
            _run_whole(llava, inputs, list(recorders.values()), changed)
        else:
            features = _run_pictures(llava, inputs, plan, recorders)
            if "language_model" in recorders:
                recorders["language_model"].run(lambda: _run_language_model(llava, inputs, plan, features))
    for part, recorder in recorders.items():
        expand = torch.tensor(plan.selections[part].of_example, device=llava.device)
        for site, value in recorder.finished(names).items():
            if site.name == "pattern" and part == "language_model":  # later keys get no attention
                value = nn.functional.pad(value, (0, max(0, inputs.n_positions - value.shape[-1])))
            # Indexing outside inference mode makes tensors of their own, which autograd and in-place work may use.
            collected[site] = value[expand].to(dtype or value.dtype)
    masks = {s: plan.selections[s.part].mask_of_examples() for s in collected} if pool == "none" else {}
    positions = {s: plan.positions[s.part] for s in collected} if pool == "none" else {}
    order = list(dict.fromkeys(sites))
    return Activations({s: collected[s] for s in order}, masks, positions)


def capture_examples(
    llava: Adapter,
    examples: Sequence[Example],
    sites: Sequence[Site],
    *,
    tokens: Group = "all",
    pool: Pool = "mean",
    batch_size: int = 8,
    dtype: torch.dtype | None = None,
    padding_side: PaddingSide = "right",
    preprocess: Preprocess = "pad",
    batches: Sequence[Sequence[int]] | None = None,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Iterator[Captured]:
    """The activations of a data set, batch after batch; only one batch is in memory at a time.

    Where the wanted tokens precede the question (image tokens, a box, a patch), each distinct sequence of pictures is
    run once, however many questions it has.

    Args:
        llava: The model.
        examples: Any indexable collection; pictures are opened batch by batch.
        sites: See ``capture``.
        tokens: A token group.
        pool: See ``capture``.
        batch_size: Rows that are run together.
        dtype: Of the values; None keeps the run's.
        padding_side: See ``prepare``.
        preprocess: See ``prepare``.
        batches: What ``plan_batches`` returned, or a part of it, to resume; None plans here.
        on_progress: Told how it goes, as (stage, examples newly done, all examples).

    Raises:
        ValueError: As ``capture`` and ``prepare`` do.
    """
    if batches is None:
        batches = plan_batches(examples, tokens=tokens, batch_size=batch_size)
    total = sum(len(indices) for indices in batches)
    for indices in batches:
        batch = [examples[index] for index in indices]
        inputs = prepare(llava, batch, padding_side=padding_side, preprocess=preprocess)
        found = capture(llava, inputs, sites, tokens=tokens, pool=pool, dtype=dtype, examples=batch)
        on_progress("capturing", len(indices), total)
        yield Captured(tuple(indices), found)


def plan_batches(examples: Sequence[Example], *, tokens: Group, batch_size: int) -> list[tuple[int, ...]]:
    """The indices of each batch: ``batch_size`` rows to run, with all the examples that share them.

    Raises:
        ValueError: If there are no examples or ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}. It counts rows that are run together.")
    if len(examples) == 0:
        raise UserError("examples must hold at least one example, got none. Check the limit and the split.")
    shared = isinstance(tokens, (BoxGroup, PatchGroup)) or tokens in ("image", "object")
    if not shared:
        return [tuple(range(i, min(i + batch_size, len(examples)))) for i in range(0, len(examples), batch_size)]
    of_pictures: dict[tuple[str, ...], list[int]] = {}
    for index in range(len(examples)):
        of_pictures.setdefault(tuple(picture.key for picture in examples[index].pictures), []).append(index)
    batches: list[tuple[int, ...]] = []
    current: list[int] = []
    rows = 0
    for indices in of_pictures.values():
        for start in range(0, len(indices), _SHARERS):
            current += indices[start : start + _SHARERS]
            rows += 1
            if rows == batch_size:
                batches.append(tuple(current))
                current, rows = [], 0
    return [*batches, tuple(current)] if current else batches


def _run_pictures(
    llava: Adapter, inputs: Inputs, plan: CapturePlan, recorders: Mapping[Part, "Recorder"]
) -> Tensor | None:
    """Every distinct picture through the vision tower and the projector; its features where the run got so far."""
    if not plan.needs_pictures or inputs.pixel_values is None:
        return None
    pixels, features = inputs.pixel_values, list[Tensor]()

    def run() -> None:
        features.append(llava.image_features(pixels))

    only_pictures = "language_model" not in recorders
    projector, tower = recorders.get("projector"), recorders.get("vision_tower")
    inner = run if projector is None else lambda: projector.run(run, stop=only_pictures)
    if tower is None:
        inner()
    else:
        tower.run(inner, stop=only_pictures and projector is None)
    return features[0] if features else None


def _run_whole(
    llava: Adapter,
    inputs: Inputs,
    recorders: Sequence["Recorder"],
    changed: Callable[[Inputs], AbstractContextManager[None]],
) -> None:
    """One forward of the whole model on the batch as it is padded, with interventions."""
    run: Callable[[], object] = partial(llava.model, **inputs.model_kwargs(), logits_to_keep=1, use_cache=False)
    for recorder in recorders:
        run = partial(recorder.run, run, stop=False)
    with changed(inputs):  # entered before the recorders' hooks: it may run the unchanged model
        run()


def _run_language_model(llava: Adapter, inputs: Inputs, plan: CapturePlan, features: Tensor | None) -> None:
    """The planned rows, starting at column 0, through the language model."""
    length = max(row.length for row in plan.rows)
    ids = torch.zeros(len(plan.rows), length, dtype=torch.int64, device=llava.device)
    for i, row in enumerate(plan.rows):
        ids[i, : row.length] = inputs.input_ids[row.example, row.start : row.start + row.length]
    embeddings = llava.embed(ids)
    for i, row in enumerate(plan.rows):
        for picture, span in zip(inputs.image_of[row.example], inputs.layout[row.example].images, strict=True):
            if span.start - row.start < row.length:
                assert features is not None  # the plan asked for pictures because of this span
                embeddings[i, span.start - row.start : span.stop - row.start] = features[picture].to(embeddings.dtype)
    llava.run_language_model(embeddings)
