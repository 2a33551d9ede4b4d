"""Inputs and scores of a model: examples, prompts, pictures, and the scores of answers.

Data sets are embedded (``tasks.scenes``) or the user's own (``tasks.readers``). The package does not depend on models,
activations or training.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # each name is imported on first use
