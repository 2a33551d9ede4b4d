"""The class that a probe decides for, the same in scores and in maps over patches."""

from typing import Any

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int64]


def decide_class(outputs: npt.NDArray[Any], counts: npt.NDArray[np.int64], *, are_logits: bool = False) -> Codes:
    """The class with the largest ratio of probability to frequency in training, since recalls weigh classes equally.

    Args:
        outputs: Probabilities "class example", or estimates of them.
        counts: Training examples of each class; a class without any counts as one with one.
        are_logits: ``outputs`` are logits.

    Returns:
        Class codes "example".

    Source: Menon et al. 2021, "Long-Tail Learning via Logit Adjustment", arXiv 2007.07314.

    Example:
        >>> decide_class(np.array([[0.8], [0.2]]), np.array([90, 10])).tolist()  # twice as likely as among the training
        [1]
    """
    prior = np.maximum(counts, 1).astype(outputs.dtype)[:, None]
    balanced = outputs - np.log(prior) if are_logits else outputs / prior
    chosen: Codes = balanced.argmax(0).astype(np.int64)
    return chosen


def class_counts(codes: npt.NDArray[Any], n_classes: int) -> npt.NDArray[np.int64]:
    """Examples of each class code."""
    counts: npt.NDArray[np.int64] = np.bincount(codes.astype(np.int64), minlength=n_classes).astype(np.int64)
    return counts
