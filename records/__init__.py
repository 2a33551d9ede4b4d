"""What all commands share: options, run directories, tables, resampling statistics, processes, progress and errors.

The package imports ``models`` and ``tasks``; the module ``command`` also imports ``figures.report``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # each name is imported on first use
