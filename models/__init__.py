"""LLaVA-1.5: loading it, naming its activations, locating tokens, capturing, generating.

Knows the model and how examples become its inputs. Knows nothing of probes, interventions, training or run directories.
"""

from models.activations import Activations, Captured
from models.bridges import to_nnsight, to_transformer_lens
from models.capture import capture, capture_examples, plan_batches
from models.inputs import Inputs, prepare
from models.llava import Llava
from models.loading.load import load, randomised
from models.sites import Site, all_sites, depth, find_sites, parse_sites
from models.tokens import box, patch, token_mask

__all__ = [
    "Activations",
    "Captured",
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
    "parse_sites",
    "patch",
    "plan_batches",
    "prepare",
    "randomised",
    "to_nnsight",
    "to_transformer_lens",
    "token_mask",
]
