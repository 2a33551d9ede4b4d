"""``geometry-sweep``: measures of stored activations by layer, with intervals, controls, a table and figures.

``config`` has the options, ``sides`` reads the activations, ``layer_jobs`` measures a pair of layers, ``layer_map``
compares every layer with every other, ``table`` and ``findings`` compute the results, ``run`` ties them together.
"""
