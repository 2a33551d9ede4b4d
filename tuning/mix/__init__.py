"""``layerwise-finetune mix``: one training file from several, in the layout of LLaVA-1.5's 665K, and what is in it.

``config`` has the options, ``part`` reads a part, ``composition`` counts, ``mix`` writes.
"""
