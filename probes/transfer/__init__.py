"""Transfer between captions and pictures: probes fitted on one and read on the other, layer by layer.

The package reads stored activations and runs no model.
"""
