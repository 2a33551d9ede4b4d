"""Figures from saved tables, and the definitions of tables and effects that figures and summaries share.

``draw_run(folder)`` draws all figures of a run directory; every ``draw_*`` function draws one kind of figure, also into
your own Axes. The package imports none of the other packages. It does not depend on models or data.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # each name is imported on first use
