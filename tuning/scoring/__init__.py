"""Scores of a model on questions, the table of evaluations, and retention relative to full tuning.

It does not depend on plans or training.
"""
