"""Figures of ``geometry-sweep``: curves by layer, and every layer against every other."""
