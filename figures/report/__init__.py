"""One HTML page about saved runs; it reads run directories and imports nothing of the other packages."""

from figures.report.page import build_report

__all__ = ["build_report"]
