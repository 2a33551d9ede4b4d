"""Run a batch unchanged (``base_runs.prepare_base``) and with edits (``engine.run_cells``).

Engines take a model and edits as tensors. They do not import plans, token groups, metrics or file code. ``README.md``
explains the incremental engine.
"""
