from .activations.capture_run import run_capture as run_capture
from .activations.config import CaptureConfig as CaptureConfig
from .activations.open import ActivationSet as ActivationSet
from .activations.open import open_activations as open_activations
from .activations.write import write_activations as write_activations
from .config import SweepConfig as SweepConfig
from .geometry.sweep.config import GeometryConfig as GeometryConfig
from .geometry.sweep.run import run_geometry_sweep as run_geometry_sweep
from .in_memory import ProbeResult as ProbeResult
from .in_memory import direction as direction
from .in_memory import probe as probe
from .linear.estimators import (
    LogisticProbe as LogisticProbe,
)
from .linear.estimators import (
    MassMeanProbe as MassMeanProbe,
)
from .linear.estimators import (
    RidgeClassifierProbe as RidgeClassifierProbe,
)
from .linear.estimators import (
    RidgeProbe as RidgeProbe,
)
from .linear.mlp import MLPProbe as MLPProbe
from .linear.mlp import MLPRegressorProbe as MLPRegressorProbe
from .linear.saving import FittedProbe as FittedProbe
from .linear.saving import load_probes as load_probes
from .maps.files import read_maps as read_maps
from .sweep import run_sweep as run_sweep
from .transfer.cross import transfer as transfer
from .transfer.sweep import run_transfer as run_transfer
