"""Lenses: what each layer's image tokens say in words, and the command ``lens-sweep``.

``reading`` has the logit lens and what all lenses share; ``tuned``, ``jacobian`` and ``latent`` have one lens each with
its files. ``sweep`` scores lenses, ``training_run`` makes them. The package fits no probes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # each name is imported on first use
