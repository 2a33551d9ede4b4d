"""What a saved table says first: the peak of each probe's curve, the largest effect of each token group.

The summaries of the commands and the report read them. Only pandas and numpy are imported here.
"""
