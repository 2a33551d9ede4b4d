"""``benchmark-eval``: what a model answers to the questions of benchmarks, and its scores beside published ones.

It lies in ``records`` because commands of several packages score models by benchmarks. ``tasks.benchmarks`` has the
files and rules; ``answering`` runs the model, ``intervals`` gives every score an interval, ``run`` is the life of a
run.
"""
