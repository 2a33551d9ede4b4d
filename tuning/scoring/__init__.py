"""Scores of a model on questions, the table of evaluations, and retention relative to full tuning.

Nothing here knows plans or training.
"""
