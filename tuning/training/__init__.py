"""The training loop of a resolved plan on given samples, its checkpoints, and the saved model.

Nothing here knows the command line or the run directory's manifest.
"""
