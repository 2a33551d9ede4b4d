"""Training data: conversations from files and scenes, as token ids with labels, in batches.

The package imports neither ``tuning.plan`` nor ``tuning.training``.
"""
