"""Inputs and scores of a model: examples, prompts, pictures, and the scores of answers.

Data sets are embedded (``tasks.scenes``) or the user's own (``tasks.readers``). The package does not depend on models,
activations or training.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Box": "tasks.example",
    "Dataset": "tasks.dataset",
    "Example": "tasks.example",
    "Picture": "tasks.example",
    "Target": "tasks.example",
    "UserError": "tasks.errors",
    "accuracy_by_family": "tasks.scoring",
    "exact_match": "tasks.scoring",
    "examples_from": "tasks.examples_from",
    "normalise": "tasks.scoring",
    "open_picture": "tasks.pictures",
    "option_letter": "tasks.scoring",
    "picture_from": "tasks.examples_from",
    "score_answer": "tasks.scoring",
    "vicuna_v1": "tasks.prompts",
    "vqa_accuracy": "tasks.scoring",
    "yes_or_no": "tasks.scoring",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name on first use; every command's ``--help`` imports this package for its errors."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tasks' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
