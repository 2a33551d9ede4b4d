"""How the embedded checkpoints ``smol`` and ``smol-stage1`` were made. No other folder imports it.

It has a separate training loop, so that a seed always gives the weights that ship.
"""
