"""Reading activations: probes with scores and controls, their directions, and maps over the picture.

It uses activations and labels. It does not change a forward pass or train the model. ``probe`` runs on a model in
memory, ``run_sweep`` is the command ``probe-sweep``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # each name is imported on first use
