"""Figures from saved tables, and the definitions of effects that figures and summaries share.

``draw_run(folder)`` draws all figures of a run directory; every ``draw_*`` function draws one kind of figure and
can draw into your own Axes. The package needs no model.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # each name is imported on first use
