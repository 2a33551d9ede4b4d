"""Pooled activations on disk: ``store`` reads and writes them in shards, ``fill`` captures the missing shards.

Their inputs are models and examples, not labels or probes.
"""

from probes.activations.store import ActivationStore

__all__ = ["ActivationStore"]
