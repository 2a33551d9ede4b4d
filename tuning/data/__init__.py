"""Training data: conversations from files and scenes, as token ids with labels, in batches.

It does not depend on plans or training.
"""
