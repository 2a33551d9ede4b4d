"""Which parameters train: layer specs, plans, their resolution on a model, LoRA, and the choice of layers from tables.

Nothing here knows data or training.
"""
