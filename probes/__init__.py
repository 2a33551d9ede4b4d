"""Reading activations: probes with scores and controls, their directions, and maps over the picture.

The package imports neither ``interventions`` nor ``tuning``. ``probe`` fits probes on the activations of a model in
memory; ``run_sweep`` implements the command ``probe-sweep``, ``run_capture`` and ``open_activations`` write and read
activations as a data set, ``run_transfer`` reads probes of captions on pictures.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # each name is imported on first use
