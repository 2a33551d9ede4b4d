"""Which parameters train: layer specs, plans, their resolution on a model, LoRA, and the choice of layers from tables.

The package imports neither ``tuning.data`` nor ``tuning.training``.
"""
