"""Linear probes and probes with one hidden layer, the batched solver that fits them, and their files.

Estimators and solver take matrices and labels. The package does not import ``probes.evaluation``.
"""
