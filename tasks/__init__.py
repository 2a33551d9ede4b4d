"""What a model is asked: examples, prompts, pictures, and the scores of answers.

Knows data sets, whether embedded (``tasks.scenes``) or the user's own (``tasks.readers``). Knows nothing of models,
activations or training.
"""

from tasks.dataset import Dataset
from tasks.errors import UserError
from tasks.example import Box, Example, Picture, Target
from tasks.pictures import open_picture
from tasks.prompts import vicuna_v1

__all__ = ["Box", "Dataset", "Example", "Picture", "Target", "UserError", "open_picture", "vicuna_v1"]
