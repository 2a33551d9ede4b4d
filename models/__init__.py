"""LLaVA-1.5: loading it, naming its activations, locating tokens, capturing, generating.

It also converts examples to model inputs. Of the other packages, it imports only ``tasks``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # each name is imported on first use
