"""Pooled activations on disk: ``store`` reads and writes them in shards, ``fill`` captures the missing shards.

Knows models and examples; knows nothing of labels or probes.
"""

from probes.activations.store import ActivationStore

__all__ = ["ActivationStore"]
