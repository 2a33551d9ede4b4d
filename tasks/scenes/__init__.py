"""The embedded data: scenes of icons, questions about them, pairs for interventions, and a data set for probes.

It draws and describes scenes. It does not handle files, models or tokens.
"""

from tasks.scenes.datasets import scenes_dataset
from tasks.scenes.drawings import CATEGORIES, KINDS
from tasks.scenes.pairs import ATTRIBUTES, ScenePair, make_pair, make_pairs
from tasks.scenes.questions import FAMILIES, ask, ask_for_caption, with_caption
from tasks.scenes.scene import COLOURS, PLACES, Scene, make_scene

__all__ = [
    "ATTRIBUTES",
    "CATEGORIES",
    "COLOURS",
    "FAMILIES",
    "KINDS",
    "PLACES",
    "Scene",
    "ScenePair",
    "ask",
    "ask_for_caption",
    "make_pair",
    "make_pairs",
    "make_scene",
    "scenes_dataset",
    "with_caption",
]
