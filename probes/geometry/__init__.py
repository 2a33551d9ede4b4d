"""The geometry of representations: intrinsic dimension, shared neighbours, CKA, and the command ``geometry-sweep``.

The functions take arrays or tensors ``point d_model``. They need neither a model nor a run directory.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # each name is imported on first use
