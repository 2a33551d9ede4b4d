"""Linear probes and probes with one hidden layer, the batched solver that fits them, and their files.

Inputs are matrices and labels. The folder does not depend on models, examples or cross-validation.
"""
