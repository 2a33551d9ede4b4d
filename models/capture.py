"""Capture activations at some sites and tokens, and compute nothing else.

``capture(llava, inputs, sites, tokens="image", pool="mean")`` handles one batch, ``capture_examples`` a data set of any
size in constant memory. Attention is causal, so a row is cut after its last wanted position, rows that are equal up to
there or begin another are run once, each distinct picture passes the vision tower once, the run stops after the last
wanted layer, and no logits are computed. The values are exactly equal to those of a full forward pass.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from models.activations import Activations, Captured
from models.adapter import Adapter
from models.hooks import Pool, Recorder, Selection
from models.inputs import Inputs, PaddingSide, prepare
from models.pixels import Preprocess
from models.precision import fast_bfloat16
from models.sites import PARTS, Part, Site, check_site
from models.tokens import BoxGroup, Group, PatchGroup, token_mask
from tasks.errors import UserError
from tasks.example import Example

_POOLS = ("none", "mean", "max", "box")
# Largest number of examples per row of a batch; bounds memory if thousands of questions share a picture.
_SHARERS = 16


class _Row(NamedTuple):
    """A row that the language model runs: the example it comes from, its first column, and its length."""

    example: int
    start: int
    length: int


class _Plan(NamedTuple):
    rows: list[_Row]
    selections: dict[Part, Selection]
    positions: dict[Part, Int[Tensor, "example pos"]]
    needs_pictures: bool


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
            for ``"all"`` every token of every picture of the example, including the class token.
        tokens: A token group, or a boolean mask.
        pool: Over the wanted positions: the mean (summed in float32), the maximum, or ``"box"``, the mean over those
            that are patches in the focus box; ``"none"`` keeps each.
        dtype: Type of the values; None keeps the run's.
        examples: Examples of the batch, for the group ``"object"``, ``pool="box"`` and errors; None takes those in
            ``inputs``.
        changed: A context manager that changes the forward of a batch; see ``Llava.capture``.

    Raises:
        UserError: If there is no site or one that the model lacks, or an example has no wanted position for a site.
        CaptureError: If a site did not fire, or a value is NaN or infinite.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> inputs = llava.inputs(np.zeros((30, 40, 3), np.uint8), "What is it?")
        >>> site = Site("language_model", 2, "resid_post")
        >>> capture(llava, inputs, [site], tokens="image", pool="mean")[site].shape
        torch.Size([1, 48])
    """
    if not sites:
        raise UserError("sites must contain at least one site, got none. all_sites(llava) lists what there is.")
    if pool not in _POOLS:
        raise UserError(f"pool must be one of {', '.join(_POOLS)}, got {pool!r}. Pick one of them.")
    if dtype is not None and not dtype.is_floating_point:
        raise UserError(f"dtype must be floating-point, got {dtype}. Activations are real numbers.")
    for site in sites:
        check_site(site, llava)
    if changed is not None:
        inputs = inputs.own_pictures()  # interventions may differ between examples with the same picture
        if any(site.name == "pattern" for site in sites):
            raise UserError("sites must not be patterns while an intervention is active. Close it first.")
    examples = examples or inputs.examples or None
    wanted = _wanted(llava, inputs, tokens, pool, examples)
    whole_pictures = isinstance(tokens, str) and tokens == "all" and pool != "box"
    plan = _plan(llava, inputs, sites, wanted, whole_pictures=whole_pictures, whole_rows=changed is not None)
    names = (
        [e.id for e in examples] if examples is not None else [f"row {row} of the batch" for row in range(len(inputs))]
    )
    # In the order of the forward pass, so that an error names the first site that fails.
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
            # Indexed outside inference mode, so that autograd and in-place operations work on the result.
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
    """The activations of a data set, batch by batch; only one batch is in memory at a time.

    Where the wanted tokens precede the question (image tokens, a box, a patch), each distinct sequence of pictures is
    run once, however many questions it has.

    Args:
        llava: The model.
        examples: Any indexable collection; pictures are opened batch by batch.
        sites: See ``capture``.
        tokens: A token group.
        pool: See ``capture``.
        batch_size: Rows that are run together.
        dtype: Type of the values; None keeps the run's.
        padding_side: See ``prepare``.
        preprocess: See ``prepare``.
        batches: What ``plan_batches`` returned, or a part of it, to resume; None plans here.
        on_progress: Called with (stage, examples newly done, all examples).

    Raises:
        UserError: As ``capture`` and ``prepare`` do.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> from tasks.examples_from import examples_from
        >>> examples = examples_from([np.zeros((8, 8, 3), np.uint8)] * 3, question="What is it?")
        >>> site = Site("language_model", 2, "resid_post")
        >>> batches = capture_examples(load("random:tiny"), examples, [site], tokens="last", batch_size=2)
        >>> [found.indices for found in batches]
        [(0, 1), (2,)]
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
    """The indices of each batch: ``batch_size`` rows to run, with all the examples that share them."""
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}. It counts rows that are run together.")
    if len(examples) == 0:
        raise UserError("examples must contain at least one example, got none. Check the limit and the split.")
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


def _run_pictures(llava: Adapter, inputs: Inputs, plan: _Plan, recorders: Mapping[Part, "Recorder"]) -> Tensor | None:
    """Run every distinct picture through vision tower and projector; return features if the run gets that far."""
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
    """One forward of the full model on the padded batch, with interventions."""
    run: Callable[[], object] = partial(llava.model, **inputs.model_kwargs(), logits_to_keep=1, use_cache=False)
    for recorder in recorders:
        run = partial(recorder.run, run, stop=False)
    with changed(inputs):  # entered before the recorders' hooks, because it may run the unchanged model
        run()


def _run_language_model(llava: Adapter, inputs: Inputs, plan: _Plan, features: Tensor | None) -> None:
    """Run the planned rows, starting at column 0, through the language model."""
    length = max(row.length for row in plan.rows)
    ids = torch.zeros(len(plan.rows), length, dtype=torch.int64, device=llava.device)
    for i, row in enumerate(plan.rows):
        ids[i, : row.length] = inputs.input_ids[row.example, row.start : row.start + row.length]
    embeddings = llava.embed(ids)
    for i, row in enumerate(plan.rows):
        for picture, span in zip(inputs.image_of[row.example], inputs.layout[row.example].images, strict=True):
            if span.start - row.start < row.length:
                assert features is not None  # the plan includes pictures because of this span
                embeddings[i, span.start - row.start : span.stop - row.start] = features[picture].to(embeddings.dtype)
    llava.run_language_model(embeddings)


def _wanted(
    llava: Adapter, inputs: Inputs, tokens: Group | Tensor, pool: Pool, examples: Sequence[Example] | None
) -> Bool[Tensor, "batch pos"]:
    """The wanted positions, checked."""
    if isinstance(tokens, Tensor):
        if tokens.dtype != torch.bool or tokens.shape != inputs.input_ids.shape:
            raise UserError(
                f"tokens must be a boolean mask of shape {tuple(inputs.input_ids.shape)}, got {tokens.dtype} of "
                f"{tuple(tokens.shape)}. token_mask makes one."
            )
        wanted = tokens.to(inputs.input_ids.device)
        if bool((wanted & (inputs.attention_mask == 0)).any()):
            raise UserError("tokens must not contain padding, got some. Combine the mask with attention_mask.")
    else:
        wanted = token_mask(inputs, tokens, llava, examples)
    if pool == "box":
        wanted = wanted & token_mask(inputs, "object", llava, examples)
    empty = (~wanted.any(1)).nonzero().flatten().tolist()
    if empty:
        raise UserError(
            f"tokens must contain at least one position of every example, got none in row {empty[0]} of the batch. "
            "Choose another group, or leave the example out."
        )
    return wanted


def _plan(
    llava: Adapter,
    inputs: Inputs,
    sites: Sequence[Site],
    wanted: Tensor,
    *,
    whole_pictures: bool,
    whole_rows: bool = False,
) -> _Plan:
    """The rows to run, and the row that each value comes from; ``whole_rows`` runs the padded batch."""
    ids, chosen = inputs.input_ids.tolist(), [row.nonzero().flatten().tolist() for row in wanted.cpu()]
    parts = {site.part for site in sites}
    selections: dict[Part, Selection] = {}
    positions: dict[Part, Tensor] = {}
    rows: list[_Row] = []
    needs_pictures = bool(parts - {"language_model"})
    if "language_model" in parts:
        wanted_rows: dict[_Content, _Row] = {}
        contents: list[_Content] = []
        taken: list[list[tuple[int, int]]] = []
        if whole_rows:
            taken = [[(example, column) for column in columns] for example, columns in enumerate(chosen)]
        for example, columns in enumerate(chosen) if not whole_rows else ():
            layout, pictures = inputs.layout[example], inputs.image_of[example]
            start, stop = layout.real.start, columns[-1] + 1
            # A row reaches to the end of a picture that it enters, so that boxes in one picture share its run.
            stop = max([stop, *(span.stop for span in layout.images if span.start < stop)])
            shown = tuple(p for p, span in zip(pictures, layout.images, strict=True) if span.start < stop)
            contents.append(_Content(tuple(ids[example][start:stop]), shown))
            wanted_rows.setdefault(contents[-1], _Row(example, start, stop - start))
            needs_pictures |= bool(shown)
        row_of = _shared_rows(wanted_rows, rows)
        for example, content in enumerate(contents):
            start = inputs.layout[example].real.start
            taken.append([(row_of[content], column - start) for column in chosen[example]])
        selections["language_model"] = _selection(taken, llava.device)
        positions["language_model"] = _padded(chosen, -1, inputs.input_ids.device)
    for part in ("vision_tower", "projector"):
        if part in parts:
            taken = [
                _picture_tokens(llava, inputs, example, columns, part, whole_pictures)
                for example, columns in enumerate(chosen)
            ]
            selections[part] = _selection(taken, llava.device)
            positions[part] = _padded([[token for _, token in row] for row in taken], -1, inputs.input_ids.device)
    return _Plan(rows, selections, positions, needs_pictures)


class _Content(NamedTuple):
    """What a row of the language model holds, from its first token on."""

    ids: tuple[int, ...]
    pictures: tuple[int, ...]


def _shared_rows(wanted: Mapping[_Content, _Row], rows: list[_Row]) -> dict[_Content, int]:
    """Append to ``rows`` those to run and return the number of each content's row.

    A content with which another one begins needs no row: later positions change nothing before them.
    """
    whole: list[_Content] = []
    within: dict[_Content, _Content] = {}
    for content in sorted(wanted, key=lambda content: -len(content.ids)):  # stable: equal lengths keep their order
        ids, pictures = content
        starts = (c for c in whole if c.ids[: len(ids)] == ids and c.pictures[: len(pictures)] == pictures)
        within[content] = next(starts, content)
        if within[content] is content:
            whole.append(content)
    kept = [content for content in wanted if within[content] is content]
    numbers = {content: len(rows) + number for number, content in enumerate(kept)}
    rows.extend(wanted[content] for content in kept)
    return {content: numbers[within[content]] for content in wanted}


def _picture_tokens(
    llava: Adapter, inputs: Inputs, example: int, columns: list[int], part: Part, whole_pictures: bool
) -> list[tuple[int, int]]:
    """The (picture, token) pairs of the vision side that belong to the wanted columns of one example."""
    class_token = 1 if part == "vision_tower" else 0
    if whole_pictures:
        length = llava.grid[0] * llava.grid[1] + max(class_token, llava.n_class_tokens)
        found = [(picture, token) for picture in inputs.image_of[example] for token in range(length)]
    else:
        offset = class_token - llava.n_class_tokens if part == "vision_tower" else 0
        wanted = set(columns)
        found = [
            (picture, column - span.start + offset)
            for picture, span in zip(inputs.image_of[example], inputs.layout[example].images, strict=True)
            for column in range(*span)
            if column in wanted
        ]
    if not found:
        raise UserError(
            f"tokens must contain image tokens for sites of the {part.replace('_', ' ')}, got none in row {example} "
            "of the batch. Use the group 'image' or 'object', or sites of the language model."
        )
    return found


def _selection(taken: list[list[tuple[int, int]]], device: torch.device) -> Selection:
    """The distinct selections, padded; a padded slot repeats the first, so that no other position is checked."""
    distinct: dict[tuple[tuple[int, int], ...], int] = {}
    of_example = tuple(distinct.setdefault(tuple(row), len(distinct)) for row in taken)
    length = max(len(row) for row in distinct)
    filled = torch.tensor([[*row, *[row[0]] * (length - len(row))] for row in distinct], device=device)
    mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in distinct], device=device)
    return Selection(filled[..., 0], filled[..., 1], mask, of_example)


def _padded(rows: list[list[int]], filler: int, device: torch.device) -> Tensor:
    length = max(len(row) for row in rows)
    return torch.tensor([row + [filler] * (length - len(row)) for row in rows], device=device)
