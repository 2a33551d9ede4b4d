"""LLaVA-1.5: loading it, naming its activations, locating tokens, capturing, generating.

It also converts examples to model inputs. It does not depend on probes, interventions, training or run directories.
"""

from models.activations import Activations
from models.capture import capture, capture_examples
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.loading.load import load, randomised
from models.sites import Site, all_sites, depth, find_sites
from models.tokens import box, patch, token_mask

__all__ = [
    "Activations",
    "Inputs",
    "Llava",
    "Site",
    "all_sites",
    "box",
    "capture",
    "capture_examples",
    "depth",
    "find_sites",
    "load",
    "patch",
    "prepare",
    "randomised",
    "token_mask",
]
