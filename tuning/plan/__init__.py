"""Which parameters train: layer specs, plans, their resolution on a model, LoRA, and the choice of layers from tables.

This package does not depend on data or training.
"""
