"""Prepare examples as one padded batch: ids, masks, pixels, and the positions of every part.

``llava.model(**prepare(llava, examples).model_kwargs())`` is the plain forward. Every position is computed from the
ids, so any tokenizer, image size and padding side gives the right answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from models.adapter import Adapter
from models.pixels import Geometry, Preprocess, open_rgb, to_pixels
from tasks.errors import UserError
from tasks.example import Example
from tasks.examples_from import content_hash
from tasks.prompts import IMAGE, vicuna_v1, with_answer

PaddingSide = Literal["left", "right"]
_TURN_END = " ASSISTANT:"  # the text after the question in vicuna_v1


class Span(NamedTuple):
    """Positions ``start`` to ``stop`` (exclusive) of one row of the batch."""

    start: int
    stop: int


class Layout(NamedTuple):
    """The positions of the parts of one example in its row.

    ``images`` are the image tokens of each placeholder, in order. ``question`` is None if the prompt does not contain
    it. ``prompt_stop`` is the position after the prompt's last token, where the answer begins. ``context`` is the text
    before the question, such as a caption; None if there is none.
    """

    real: Span
    images: tuple[Span, ...]
    question: Span | None
    prompt_stop: int
    context: Span | None = None

    def shifted(self, by: int) -> "Layout":
        """The same layout ``by`` positions further right."""
        return Layout(
            real=Span(self.real.start + by, self.real.stop + by),
            images=tuple(Span(s.start + by, s.stop + by) for s in self.images),
            question=None if self.question is None else Span(self.question.start + by, self.question.stop + by),
            prompt_stop=self.prompt_stop + by,
            context=None if self.context is None else Span(self.context.start + by, self.context.stop + by),
        )


@dataclass(frozen=True)
class Inputs:
    """A padded batch.

    Args:
        input_ids: Token ids; each image token holds the model's image-token id.
        attention_mask: 1 at real tokens, 0 at padding.
        position_ids: Counted from each row's first real token; 0 at padding before it.
        pixel_values: Each distinct picture once; None for a batch without pictures.
        image_of: For each example the rows of ``pixel_values`` that its placeholders show, in order.
        geometry: For each row of ``pixel_values`` how it was made from the original picture.
        layout: For each example the positions of its parts.
        prompts: The text of each row, placeholders unexpanded.
        picture_keys: For each row of ``pixel_values`` the picture's key; unique.
        padding_side: Where short rows are padded.
        examples: What the batch was made of.
        preprocess: How pictures were prepared.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> llava = load("random:tiny")
        >>> inputs = llava.inputs(np.zeros((30, 40, 3), np.uint8), "What is it?")
        >>> len(inputs), inputs.layout[0].images[0].stop - inputs.layout[0].images[0].start
        (1, 16)
    """

    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    position_ids: Int[Tensor, "batch pos"]
    pixel_values: Float[Tensor, "image 3 H W"] | None
    image_of: tuple[tuple[int, ...], ...]
    geometry: tuple[Geometry, ...]
    layout: tuple[Layout, ...]
    prompts: tuple[str, ...]
    picture_keys: tuple[str, ...]
    padding_side: PaddingSide = "right"
    examples: tuple[Example, ...] = ()
    preprocess: Preprocess = "pad"

    def __len__(self) -> int:
        """The number of examples."""
        return self.input_ids.shape[0]

    @property
    def n_positions(self) -> int:
        """The length to which every row is padded."""
        return self.input_ids.shape[1]

    def to(self, device: torch.device | str) -> "Inputs":
        """The same batch with its tensors on ``device``."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            position_ids=self.position_ids.to(device),
            pixel_values=None if self.pixel_values is None else self.pixel_values.to(device),
        )

    def select(self, rows: Sequence[int]) -> "Inputs":
        """The batch of the given examples only, in the order given, with the pictures that they show.

        The padded length stays the same, so positions stay valid.

        Raises:
            UserError: If ``rows`` is empty or the batch has no such example.
        """
        if not rows or not all(0 <= row < len(self) for row in rows):
            raise UserError(f"rows must be in [0, {len(self)}) and not empty, got {list(rows)}. Rows count from 0.")
        index = torch.tensor(list(rows), device=self.input_ids.device)
        kept = list(dict.fromkeys(image for row in rows for image in self.image_of[row]))
        renumbered = {image: new for new, image in enumerate(kept)}
        pixels = None
        if self.pixel_values is not None and kept:
            pixels = self.pixel_values[torch.tensor(kept, device=self.pixel_values.device)]
        return replace(
            self,
            input_ids=self.input_ids[index],
            attention_mask=self.attention_mask[index],
            position_ids=self.position_ids[index],
            pixel_values=pixels,
            image_of=tuple(tuple(renumbered[image] for image in self.image_of[row]) for row in rows),
            geometry=tuple(self.geometry[image] for image in kept),
            layout=tuple(self.layout[row] for row in rows),
            prompts=tuple(self.prompts[row] for row in rows),
            picture_keys=tuple(self.picture_keys[image] for image in kept),
            examples=tuple(self.examples[row] for row in rows) if self.examples else (),
        )

    def own_pictures(self) -> "Inputs":
        """The same batch with a row of pixels for every placeholder, so that each example can be changed alone."""
        if self.pixel_values is None:
            return self
        rows = [picture for pictures in self.image_of for picture in pictures]
        counts = iter(range(len(rows)))
        return replace(
            self,
            pixel_values=self.pixel_values[torch.tensor(rows, device=self.pixel_values.device)],
            image_of=tuple(tuple(next(counts) for _ in pictures) for pictures in self.image_of),
            geometry=tuple(self.geometry[row] for row in rows),
            picture_keys=tuple(self.picture_keys[row] for row in rows),
        )

    def laid_out(self, side: PaddingSide, *, answers: bool = True, room: int = 0) -> "Inputs":
        """The same batch padded on ``side``; without ``answers``, every row ends after its prompt.

        ``room`` positions are added after every row as part of its answer, for tokens that will be generated.
        """
        stops = [layout.real.stop if answers else layout.prompt_stop for layout in self.layout]
        lengths = [stop - layout.real.start for layout, stop in zip(self.layout, stops, strict=True)]
        width = max(lengths)
        shape = len(self), width + room
        tokens = [int(row[layout.real.stop - 1]) for row, layout in zip(self.input_ids, self.layout, strict=True)]
        ids = torch.tensor(tokens)[:, None].repeat(1, shape[1])  # padding; never an image token
        mask = torch.zeros(shape, dtype=torch.int64)
        layouts = []
        for row, (layout, length) in enumerate(zip(self.layout, lengths, strict=True)):
            start = width - length if side == "left" else 0
            old = layout.real.start
            ids[row, start : start + length] = self.input_ids[row, old : old + length]
            mask[row, start : start + length + room] = 1
            moved = layout.shifted(start - old)
            layouts.append(moved._replace(real=Span(start, start + length + room)))
        return replace(
            self,
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            layout=tuple(layouts),
            padding_side=side,
        ).to(self.input_ids.device)

    def model_kwargs(self) -> dict[str, Tensor]:
        """The arguments of the Hugging Face model's forward, pictures repeated for every placeholder."""
        kwargs = {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }
        if self.pixel_values is not None:
            rows = [image for images in self.image_of for image in images]
            kwargs["pixel_values"] = self.pixel_values[torch.tensor(rows, device=self.pixel_values.device)]
        return kwargs


def prepare(
    llava: Adapter,
    examples: Sequence[Example],
    *,
    prompts: Sequence[str] | None = None,
    padding_side: PaddingSide = "right",
    preprocess: Preprocess = "pad",
    answers: bool = False,
) -> Inputs:
    """The examples as one padded batch on the model's device (the CPU for a model on ``"meta"``).

    Args:
        llava: The model.
        examples: At least one; with no, one or several pictures each.
        prompts: One text for each example, with one ``<image>`` for each of its pictures; None uses vicuna_v1.
        padding_side: Where short rows are padded.
        preprocess: ``"pad"`` first pastes the picture on a square of CLIP's mean colour, as in LLaVA-1.5's training;
            ``"hf"`` is the checkpoint's own picture processor, which usually scales the shortest edge and
            crops the centre.
        answers: Whether the answer and the end-of-text token follow the prompt.

    Raises:
        UserError: If a picture cannot be read or is too elongated, there are no examples, placeholders and pictures do
            not match, a prompt is longer than the model's context, or a token contains both prompt and answer.

    Source: padding to a square from Liu et al. 2024, "Improved Baselines with Visual Instruction Tuning",
        arXiv 2310.03744.

    Example:
        >>> import numpy as np
        >>> from models import load
        >>> from tasks.examples_from import examples_from
        >>> examples = examples_from([np.zeros((8, 8, 3), np.uint8)] * 2, question=["What?", "Is it a cat?"])
        >>> prepare(load("random:tiny"), examples).image_of
        ((0,), (0,))
    """
    if not examples:
        raise UserError("examples must contain at least one example, got none. Check the limit and the split.")
    if prompts is not None and len(prompts) != len(examples):
        raise UserError(
            f"prompts must have one text for each of {len(examples)} examples, got {len(prompts)}. "
            "Leave it out to use vicuna_v1."
        )
    if padding_side not in ("left", "right"):
        raise UserError(f"padding_side must be 'left' or 'right', got {padding_side!r}. Pick one of the two.")
    if preprocess not in ("hf", "pad"):
        raise UserError(f"preprocess must be 'hf' or 'pad', got {preprocess!r}. LLaVA-1.5 was trained with 'pad'.")
    examples = list(examples)  # a lazy sequence makes each example anew when it is read
    if prompts is None:
        prompts = [vicuna_v1(e.question, n_images=len(e.pictures), context=e.context) for e in examples]
    texts = tuple(prompts)
    rows = [_tokenise(llava, example, text, answers) for example, text in zip(examples, texts, strict=True)]
    length = max(len(ids) for ids, _ in rows)
    shifts = [length - len(ids) if padding_side == "left" else 0 for ids, _ in rows]
    input_ids = torch.full((len(rows), length), llava.pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, ((ids, _), shift) in enumerate(zip(rows, shifts, strict=True)):
        input_ids[row, shift : shift + len(ids)] = torch.tensor(ids)
        attention_mask[row, shift : shift + len(ids)] = 1
    pictures = _distinct(llava, examples, preprocess)
    return Inputs(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0),
        pixel_values=torch.stack(pictures.pixels) if pictures.pixels else None,
        image_of=pictures.image_of,
        geometry=tuple(pictures.geometry),
        layout=tuple(layout.shifted(shift) for (_, layout), shift in zip(rows, shifts, strict=True)),
        prompts=texts,
        picture_keys=tuple(pictures.keys),
        padding_side=padding_side,
        examples=tuple(examples),
        preprocess=preprocess,
    ).to("cpu" if llava.device.type == "meta" else llava.device)  # token positions are computed from values


def _tokenise(llava: Adapter, example: Example, prompt: str, answers: bool) -> tuple[list[int], Layout]:
    """The ids of one row with placeholders expanded, and its layout before padding."""
    n_placeholders = prompt.count(IMAGE)
    if n_placeholders != len(example.pictures):
        raise UserError(
            f"prompt of example {example.id!r} must have one {IMAGE} for each of its {len(example.pictures)} pictures, "
            f"got {n_placeholders}. Questions are written without placeholders."
        )
    ids, offsets = _encode(llava.tokenizer, prompt)
    full = ids
    if answers:
        eos = llava.tokenizer.eos_token
        full, _ = _encode(llava.tokenizer, with_answer(prompt, example.answer, eos if isinstance(eos, str) else ""))
        if full[: len(ids)] != ids:
            raise UserError(
                f"tokenizer must cut between prompt and answer, got tokens across the two in example {example.id!r}. "
                "Use a tokenizer that starts a new token at a space."
            )
    placeholders = [position for position, token in enumerate(full) if token == llava.image_token_id]
    if len(placeholders) != n_placeholders:
        raise UserError(
            f"tokenizer must write {IMAGE} as the single token {llava.image_token_id}, got {len(placeholders)} such "
            f"tokens for {n_placeholders} placeholders in example {example.id!r}. Use the checkpoint's own tokenizer."
        )
    extra = llava.n_image_tokens - 1  # positions that replacing a placeholder adds

    def expanded(position: int) -> int:
        return position + extra * sum(placeholder < position for placeholder in placeholders)

    row: list[int] = []
    for token in full:
        row.extend([token] * llava.n_image_tokens if token == llava.image_token_id else [token])
    text: Any = llava.config.text_config
    limit = int(text.max_position_embeddings)
    if len(row) > limit:
        raise UserError(
            f"prompt must have at most {limit} tokens for {llava.id}, got {len(row)} in example {example.id!r} "
            f"({n_placeholders} pictures of {llava.n_image_tokens} tokens). Shorten the question or show fewer."
        )

    def positions(characters: Span | None) -> Span | None:
        if characters is None:
            return None
        inside = [i for i, (start, stop) in enumerate(offsets) if start < characters.stop and stop > characters.start]
        return Span(expanded(inside[0]), expanded(inside[-1]) + 1) if inside else None

    asked = _question_characters(prompt, example.question)
    context = None
    if asked is not None and example.context and prompt[: asked.start].endswith(f"{example.context}\n"):
        context = Span(asked.start - 1 - len(example.context), asked.start - 1)
    images = tuple(Span(expanded(p), expanded(p) + llava.n_image_tokens) for p in placeholders)
    return row, Layout(Span(0, len(row)), images, positions(asked), expanded(len(ids)), positions(context))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids, and the character span of each."""
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer must report character offsets, got {type(tokenizer).__name__}. Load the fast version of it."
        )
    encoding: Any = tokenizer(text, return_offsets_mapping=True, return_attention_mask=False, verbose=False)
    return list(encoding["input_ids"]), [(int(start), int(stop)) for start, stop in encoding["offset_mapping"]]


def _question_characters(prompt: str, question: str) -> Span | None:
    """The characters of the question: before the assistant's turn, or where it occurs exactly once."""
    turn = prompt.rfind(_TURN_END)
    if question and turn >= 0 and prompt[:turn].endswith(question):
        return Span(turn - len(question), turn)
    if question and prompt.count(question) == 1:
        start = prompt.index(question)
        return Span(start, start + len(question))
    return None


class _Distinct(NamedTuple):
    pixels: list[Float[Tensor, "3 H W"]]
    geometry: list[Geometry]
    keys: list[str]
    image_of: tuple[tuple[int, ...], ...]


def _distinct(llava: Adapter, examples: Sequence[Example], preprocess: Preprocess) -> _Distinct:
    """Each distinct picture once. Pictures are compared by their pixels, so two different pictures may have one key."""
    row_of_picture: dict[int, int] = {}
    row_of_content: dict[str, int] = {}
    found = _Distinct([], [], [], ())
    for picture in (picture for example in examples for picture in example.pictures):
        if id(picture) in row_of_picture:
            continue
        image, geometry = open_rgb(llava, picture, preprocess)
        content = content_hash(image)
        if content not in row_of_content:
            row_of_content[content] = len(found.keys)
            found.pixels.append(to_pixels(llava, image, preprocess))
            found.geometry.append(geometry)
            found.keys.append(picture.key if picture.key not in found.keys else f"{picture.key}#{content[:16]}")
        row_of_picture[id(picture)] = row_of_content[content]
    return found._replace(image_of=tuple(tuple(row_of_picture[id(p)] for p in e.pictures) for e in examples))
