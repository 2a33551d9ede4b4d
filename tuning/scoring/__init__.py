"""Scores of a model on questions, the table of evaluations, and retention relative to full tuning.

The package does not import ``tuning.plan``, and from ``tuning.training`` only ``loss``.
"""
