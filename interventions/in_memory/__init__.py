"""Interventions in a notebook: context managers for a model in memory, and functions that measure one effect.

It converts a call to cells of a plan and applies their edits while text is generated. It does not handle files, data
sets or run directories. Its results equal those of ``patch-sweep``.
"""
