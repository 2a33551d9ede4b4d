"""The control model: the same architecture with random weights, of the same dtype on the same device."""

import gc
from dataclasses import replace

from models.llava import Llava
from models.loading.load import load
from records.options import ModelOptions

_CONTROL_SEED = 2**16  # added to the seed, so that the control differs from a random model of the same seed


def control_model(llava: Llava, options: ModelOptions, *, seed: int, keep: bool) -> Llava:
    """The same model with random weights. Unless ``keep`` is set, the trained weights are freed first."""
    device, dtype = llava.device, llava.dtype
    if not keep:
        llava.model.to("meta")  # type: ignore[arg-type]
        gc.collect()
    random = load(
        llava.config, device=device, dtype=dtype, attn=options.attn, seed=seed + _CONTROL_SEED, validate=False
    )
    return replace(random, processor=llava.processor)


def has_control(options: ModelOptions) -> bool:
    """True if a randomly initialised model is a control; False if the model's own weights are random."""
    return not options.name.startswith("random:")
