"""Maps over the picture: probes fitted on pooled activations, applied to every patch of a few other examples.

It uses fitted examples and their folds, not scores. ``plan_maps`` chooses the examples, ``write_maps`` makes the maps,
``read_maps`` reads them.
"""

from probes.maps.files import read_maps

__all__ = ["read_maps"]
