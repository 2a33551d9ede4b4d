"""Pooled activations on disk: ``store`` reads and writes them in shards, ``fill`` captures the missing shards.

The package imports neither labels nor probes.
"""
