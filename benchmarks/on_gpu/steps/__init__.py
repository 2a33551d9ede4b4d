"""The steps in order of worth."""

from benchmarks.on_gpu.step import Step
from benchmarks.on_gpu.steps import (
    capture,
    correctness,
    geometry,
    inference,
    interventions,
    learning,
    lenses,
    probes,
    tuning_cost,
)

STEPS: tuple[Step, ...] = (
    correctness.STEP,
    tuning_cost.STEP,
    interventions.STEP,
    probes.STEP,
    capture.STEP,
    inference.STEP,
    geometry.STEP,
    lenses.TUNED,
    lenses.JACOBIAN,
    learning.STEP,
)
