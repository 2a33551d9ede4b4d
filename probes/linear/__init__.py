"""Linear probes and probes with one hidden layer, the batched solver behind them, and their files.

Its inputs are matrices and labels. It does not depend on models, examples or cross-validation.
"""
