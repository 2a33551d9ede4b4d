"""Intervals of what is reported because it is significant; they hold among what is reported, which is large by luck.

Known here: how large a statistic has to be to be reported. Not known: what is tested, and how.
"""

from records.named.means import NamedInterval, named_interval
from records.named.shares import named_share

__all__ = ["NamedInterval", "named_interval", "named_share"]
