"""Controls of a probe: the control task of Hewitt and Liang, and raw pixels."""

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
    """Labels of the control task: every type gets one label, drawn from the distribution of the real labels.

    A probe that scores well on it memorises types; the real score minus this one is the selectivity.

    Args:
        types: The type of each example, such as a drawing or a word: the finest that recurs across groups.
        labels: The real labels.
        generator: Source of randomness.

    Source: Hewitt & Liang, Designing and Interpreting Probes with Control Tasks, 2019, arXiv 1909.03368.
    """
    names, code = np.unique(np.asarray(types), return_inverse=True)
    return labels[generator.integers(len(labels), size=len(names))][code]


def pixel_features(
    pictures: Sequence[Image.Image | npt.NDArray[np.uint8]], *, size: int = 16
) -> Float[Tensor, "example d_model"]:
    """Pixels in [0, 1] of each picture at ``size`` x ``size``, flattened."""
    if not pictures or size < 1:
        raise UserError(
            f"pictures must be non-empty and size positive, got {len(pictures)} and {size}. Pass some pictures."
        )
    images = [p if isinstance(p, Image.Image) else Image.fromarray(p) for p in pictures]
    small = [np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BOX)) for image in images]
    return torch.from_numpy(np.stack(small).reshape(len(small), -1).astype(np.float32) / 255)
