"""Interventions in a notebook: ``context_managers`` change a model's runs, ``measure`` computes the effect of a change.

Each call becomes cells of a plan, so its results equal those of ``patch-sweep``. The folder reads and writes no files.
"""
