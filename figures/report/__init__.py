from figures.report.page import Report, build_report

__all__ = ["Report", "build_report"]
