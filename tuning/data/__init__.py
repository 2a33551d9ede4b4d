"""Training data: conversations from files and scenes, as token ids with labels, in batches.

Nothing here knows plans or training.
"""
