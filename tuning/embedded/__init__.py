"""How the embedded checkpoints ``smol`` and ``smol-stage1`` were made. No other folder imports it.

It has its own training loop: it made weights that ship, so it stays as it was.
"""
