"""Operations, time and memory of a training step: estimated, counted and measured.

Nothing here trains a model or writes a file.
"""
