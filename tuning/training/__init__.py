"""The training loop of a resolved plan, its checkpoints, and the saved model.

It does not depend on the command line or the run directory's manifest.
"""
