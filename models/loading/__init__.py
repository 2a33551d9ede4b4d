"""Loading LLaVA-1.5: embedded checkpoints, folders in three layouts, Hugging Face ids, and random weights.

Knows files, keys, tokenizers and configs, and checks what it loads. Knows nothing of examples or experiments.
"""

from models.loading.load import load, randomised

__all__ = ["load", "randomised"]
