"""Property tests for an initialisation scheme: does it hold across architectures, and what is the smallest where not?

    from verify.properties import check
    check("mypackage.inits:my_scheme", declared="he").print()

Every property is also a function: `verify.properties.declared_std(scheme, declared="he")` raises `Violation`.
"""

from verify.properties.check import PROPERTIES, Report, check
from verify.properties.property import THOROUGH, Finding, Limits, Property, Result, Violation
from verify.properties.scheme import Model, Scheme, SchemeError, as_scheme
from verify.properties.strategies import Widths, architectures, embeddings, initializations, token_batches, weights

__all__ = [
    "PROPERTIES",
    "THOROUGH",
    "Finding",
    "Limits",
    "Model",
    "Property",
    "Report",
    "Result",
    "Scheme",
    "SchemeError",
    "Violation",
    "Widths",
    "architectures",
    "as_scheme",
    "check",
    "embeddings",
    "initializations",
    "token_batches",
    "weights",
    *PROPERTIES,
]
globals().update(PROPERTIES)
