"""Measure, train and judge: autodiff against prediction, training runs, spike metrics, claims, the report."""

from verify.measurement import Measurement, compare, measure

__all__ = ["Measurement", "compare", "measure"]
