"""The training loop of a resolved plan, its checkpoints, and the saved model.

The package imports neither ``tuning.run`` nor ``tuning.cli``.
"""
