"""Measure, train and judge: autodiff against prediction, training runs, spike metrics, claims, the report."""

from verify.measurement import Certificate, Measurement, certify, compare, measure

__all__ = ["Certificate", "Measurement", "certify", "compare", "measure"]
