"""Maps over the picture: probes fitted on pooled activations, applied to every patch of a few other examples.

Knows fitted examples and their folds; knows nothing of scores. ``plan_maps`` chooses the examples, ``write_maps``
makes the maps, ``read_maps`` reads them.
"""

from probes.maps.files import read_maps

__all__ = ["read_maps"]
