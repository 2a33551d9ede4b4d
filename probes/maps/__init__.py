"""Maps over the picture: probes fitted on pooled activations, applied to every patch of a few other examples.

Their inputs are the fitted examples and folds, not scores. ``plan_maps`` chooses examples, ``write_maps`` makes maps,
``read_maps`` reads them.
"""

from probes.maps.files import read_maps

__all__ = ["read_maps"]
