"""lmms-eval: ``--model laccolith`` answers its tasks in batches, under token plans and interventions.

``manifest`` is the entry point of the group ``lmms_eval.models``; ``model`` subclasses lmms-eval's class, so it is
imported only where lmms-eval is installed. ``interventions`` reads interventions from text.
"""
