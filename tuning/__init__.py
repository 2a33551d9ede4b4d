"""Layer plans, their training, their cost, and comparisons of several plans.

``tune(llava, data, layers=...)`` starts one run, ``run_tuning(TuningConfig(...))`` a run with all options, and
``run_compare(CompareConfig(...))`` several runs. The package imports neither ``probes`` nor ``interventions``; it reads
the tables that they write.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # each name is imported on first use
