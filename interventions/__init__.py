"""Changes to a forward pass and what they do to the answer: patching, ablation, knockout, skipping, steering, and more.

``in_memory`` contains short functions for notebooks; ``sweep`` implements the command ``patch-sweep``. The package
imports ``models``, ``records``, ``tasks`` and ``figures``, but neither ``probes`` nor ``tuning``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # each name is imported on first use
