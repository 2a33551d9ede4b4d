"""Loading LLaVA-1.5, naming sites, locating tokens, running with capture."""

from models.activations import Activations
from models.capture import capture, capture_examples, plan_batches
from models.llava import Llava
from models.loading.load import load, randomised
from models.sites import Site, all_sites, depth, parse_sites

__all__ = [
    "Activations",
    "Llava",
    "Site",
    "all_sites",
    "capture",
    "capture_examples",
    "depth",
    "load",
    "parse_sites",
    "plan_batches",
    "randomised",
]
