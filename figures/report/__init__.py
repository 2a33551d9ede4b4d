"""One HTML page about saved runs, from their run directories; it imports only ``figures``."""

from figures.report.page import build_report

__all__ = ["build_report"]
