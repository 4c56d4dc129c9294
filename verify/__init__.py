"""Measure, train and judge: autodiff against prediction, training runs, spike metrics, claims, the report.

What is exported here is imported when it is first asked for: pytest loads `verify.pytest_plugin` at every start.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verify.measurement import Certificate, Measurement, certify, compare, measure

__all__ = ["Certificate", "Measurement", "certify", "compare", "measure"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'verify' has no attribute {name!r}")
    from verify import measurement

    return getattr(measurement, name)
