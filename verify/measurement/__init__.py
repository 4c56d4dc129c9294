"""Measure a model at initialisation by automatic differentiation, and set it beside the prediction."""

from verify.measurement.certify import Certificate, certify
from verify.measurement.compare import compare
from verify.measurement.measure import Measurement, measure

__all__ = ["Certificate", "Measurement", "certify", "compare", "measure"]
