"""Loading LLaVA-1.5: embedded checkpoints, folders in three layouts, Hugging Face ids, and random weights.

It reads files, keys, tokenizers and configs, and checks what it loads.
"""

from models.loading.load import load, randomised

__all__ = ["load", "randomised"]
