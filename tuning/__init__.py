"""Layer plans, their training, what they cost, and how several plans compare.

``tune(llava, data, layers=...)`` is one run, ``run_tuning(TuningConfig(...))`` one with all options, and
``run_compare(CompareConfig(...))`` several. This package uses models, data and run directories. Of probes and
interventions it uses only the tables that they write.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # each name is imported on first use
