"""Operations, time and memory of a training step: estimated, counted and measured.

Nothing in this package trains a model or writes a file.
"""
