"""Run edits of a forward pass: ``prepare_base`` runs a batch unchanged, ``run_cells`` with edits.

Its inputs are the model and edits as tensors. It does not depend on plans, token groups, metrics or files.
``README.md`` explains the incremental engine.
"""
