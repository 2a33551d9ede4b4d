"""Linear probes and probes with one hidden layer, the batched solver behind them, and their files.

Its inputs are matrices and labels. It does not depend on models, examples or cross-validation.
"""

from probes.linear.estimators import LogisticProbe, MassMeanProbe, RidgeClassifierProbe, RidgeProbe
from probes.linear.mlp import MLPProbe, MLPRegressorProbe
from probes.linear.saving import FittedProbe, load_probes

__all__ = [
    "FittedProbe",
    "LogisticProbe",
    "MLPProbe",
    "MLPRegressorProbe",
    "MassMeanProbe",
    "RidgeClassifierProbe",
    "RidgeProbe",
    "load_probes",
]
