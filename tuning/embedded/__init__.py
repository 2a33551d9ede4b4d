"""How the embedded checkpoints ``smol`` and ``smol-stage1`` were made. No other folder imports it.

It has its own training loop, so that a seed gives the weights that ship.
"""
