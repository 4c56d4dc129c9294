"""The main job: derive, predict, measure, train, judge, and write one page that a person reads."""

from verify.report.options import ReportOptions
from verify.report.run import run

__all__ = ["ReportOptions", "run"]
