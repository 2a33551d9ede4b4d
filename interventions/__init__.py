"""Changes to a forward pass and what they do to the answer: patching, ablation, knockout, skipping, steering, and more.

Plans, operations and engines are sub-packages; ``in_memory`` has the short forms for a notebook, ``sweep`` the command
``patch-sweep``. The package uses models and examples. It does not depend on probes or training.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # each name is imported on first use
