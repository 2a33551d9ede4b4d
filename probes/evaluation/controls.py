"""What a probe's score must be compared with: labels that say nothing, types with arbitrary labels, and raw pixels."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from tasks.errors import UserError


def control_labels(
    types: npt.ArrayLike, labels: npt.NDArray[np.generic], *, generator: np.random.Generator
) -> npt.NDArray[np.generic]:
    """Labels of the control task: every type gets one label, drawn once from the distribution of the real labels.

    A probe that does well here memorises types; the real score minus this one is the selectivity.

    Args:
        types: What the activation is of, in the finest grain that recurs (a drawing, a word); one per example.
        labels: The real labels, which set the distribution.
        generator: Source of randomness.

    Source: Hewitt & Liang, Designing and Interpreting Probes with Control Tasks, 2019, arXiv 1909.03368.
    """
    names, code = np.unique(np.asarray(types), return_inverse=True)
    return labels[generator.integers(len(labels), size=len(names))][code]


def pixel_features(
    pictures: Sequence[Image.Image | npt.NDArray[np.uint8]], *, size: int = 16
) -> Float[Tensor, "example d_model"]:
    """Pixels in [0, 1] of each picture at ``size`` x ``size``, flattened: what a probe reads without any model.

    Raises:
        ValueError: If there is no picture or ``size`` is not positive.
    """
    if not pictures or size < 1:
        raise UserError(
            f"pictures must be non-empty and size positive, got {len(pictures)} and {size}. Pass some pictures."
        )
    small = [np.asarray(_image(p).convert("RGB").resize((size, size), Image.Resampling.BOX)) for p in pictures]
    return torch.from_numpy(np.stack(small).reshape(len(small), -1).astype(np.float32) / 255)


def _image(picture: Image.Image | npt.NDArray[np.uint8]) -> Image.Image:
    return picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
