"""Inputs and scores of a model: examples, prompts, pictures, and the scores of answers.

Data sets are embedded (``tasks.scenes``) or the user's own (``tasks.readers``). The package does not depend on models,
activations or training.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tasks.dataset import Dataset
from tasks.errors import UserError
from tasks.example import Box, Example, Picture, Target
from tasks.examples_from import examples_from, picture_from
from tasks.pictures import open_picture
from tasks.prompts import vicuna_v1

if TYPE_CHECKING:
    from tasks.scoring import (
        accuracy_by_family,
        exact_match,
        normalise,
        option_letter,
        score_answer,
        vqa_accuracy,
        yes_or_no,
    )

__all__ = [
    "Box", "Dataset", "Example", "Picture", "Target", "UserError", "accuracy_by_family", "exact_match", "examples_from",
    "normalise", "open_picture", "option_letter", "picture_from", "score_answer", "vicuna_v1", "vqa_accuracy",
    "yes_or_no",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """A public function of ``tasks.scoring``, which imports pandas and scipy, on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("tasks.scoring"), name)
