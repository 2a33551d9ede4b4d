"""Build the embedded checkpoints ``smol`` and ``smol-stage1``. No other package imports this one.

The training loop is separate from ``tuning.training``, so that changes there do not change these weights.
"""
