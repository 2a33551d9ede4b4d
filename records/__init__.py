"""What all commands share: options, run directories, tables, resampling statistics, processes, progress and errors.

It does not depend on what a command computes. Probes, interventions and tuning import from its modules.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # each name is imported on first use
