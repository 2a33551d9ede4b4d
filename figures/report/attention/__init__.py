"""The report's view of attention beside the effect of cutting the same edges."""
