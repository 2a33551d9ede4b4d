"""Attention over the picture beside the measured effect of cutting the same edges."""
