"""What all commands share: options, run directories, tables, resampling statistics, processes, progress and errors.

The package imports ``models``, ``tasks`` and ``figures``; ``probes``, ``interventions`` and ``tuning`` import it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # each name is imported on first use
