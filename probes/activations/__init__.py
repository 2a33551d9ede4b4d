"""Pooled activations on disk: ``store`` reads and writes them in shards, ``fill`` captures the missing shards.

Its inputs are models and examples. It does not depend on labels or probes.
"""

from probes.activations.store import ActivationStore

__all__ = ["ActivationStore"]
