"""The corrupt run: another picture, a blank one, or noise on the image embeddings.

The first two are separate batches. Noise is an edit of the clean batch; ``draw_noise`` seeds it by picture, so that it
does not depend on batches or their order.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from interventions.engines.edits import Write
from models.capture import capture_examples
from models.hooks import edited
from models.inputs import Inputs
from models.llava import Llava
from models.pixels import Preprocess
from models.sites import Site
from tasks.errors import UserError
from tasks.example import Example

EMBEDDINGS = Site("projector", None, "out")


def blank_pictures(inputs: Inputs) -> Inputs:
    """The same batch with every picture replaced by CLIP's mean colour, zeros after normalisation."""
    pixels = _pixels(inputs)
    keys = tuple("blank" for _ in inputs.picture_keys)
    return replace(inputs, pixel_values=torch.zeros_like(pixels), picture_keys=keys)


def embedding_deviation(
    llava: Llava, examples: Sequence[Example], *, batch_size: int = 8, preprocess: Preprocess = "pad"
) -> float:
    """Standard deviation of the image embeddings over tokens, dimensions and the distinct pictures of a data set."""
    distinct = list({tuple(p.key for p in example.pictures): example for example in examples}.values())
    n, total, squares = 0, 0.0, 0.0
    for found in capture_examples(
        llava, distinct, [EMBEDDINGS], tokens="image", pool="none", batch_size=batch_size, preprocess=preprocess
    ):
        values = found.activations[EMBEDDINGS][found.activations.mask[EMBEDDINGS]].double()
        n, total, squares = n + values.numel(), total + float(values.sum()), squares + float((values**2).sum())
    return math.sqrt(max(0.0, squares / n - (total / n) ** 2))


def draw_noise(llava: Llava, inputs: Inputs, *, deviation: float, seed: int) -> Float[Tensor, "image token d_model"]:
    """Gaussian noise with standard deviation ``deviation`` for each image embedding; equal pictures get equal noise.

    Source: noise of three standard deviations on the subject's embeddings in Meng et al. 2022, "Locating and Editing
        Factual Associations in GPT", arXiv 2202.05262.
    """
    pixels = _pixels(inputs)
    drawn = []
    for key in inputs.picture_keys:
        digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        drawn.append(torch.randn(llava.n_image_tokens, llava.d_model, generator=generator))
    return (deviation * torch.stack(drawn)).to(pixels.device)


def noise_edit(noise: Float[Tensor, "image token d_model"]) -> Write:
    """The edit that adds the noise to every image embedding."""
    mask = torch.ones(noise.shape[:2], dtype=torch.bool, device=noise.device)
    return Write(EMBEDDINGS, mask, noise, add=True)


@contextmanager
def noised(llava: Llava, inputs: Inputs, noise: Float[Tensor, "image token d_model"]) -> Iterator[None]:
    """Add the noise in forwards and captures of ``inputs`` while the context is open."""
    of_placeholder = torch.tensor([row for rows in inputs.image_of for row in rows], device=noise.device)

    def add(value: Tensor) -> Tensor:
        # A plain forward projects one picture per placeholder, a capture one per distinct picture. If the numbers
        # agree, each picture occurs once, in order, and the two are the same.
        rows = noise if value.shape[0] == noise.shape[0] else noise[of_placeholder]
        return value + rows.to(value.dtype)

    with edited(llava, {EMBEDDINGS: add}):
        yield


def _pixels(inputs: Inputs) -> Tensor:
    bare = [row for row, pictures in enumerate(inputs.image_of) if not pictures]
    if bare or inputs.pixel_values is None:
        raise UserError(
            f"examples must have a picture to corrupt, got none in row {bare[0] if bare else 0} of the batch."
        )
    return inputs.pixel_values
