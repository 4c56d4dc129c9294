"""What all registered schemes share: a name finds its object, an object of the user's own passes through."""

from collections.abc import Mapping
from typing import TypeVar

S = TypeVar("S")


def lookup(field: str, scheme: object, registry: Mapping[str, S], kind: type[S]) -> S:
    """The object registered under the name `scheme`, or `scheme` itself where it is a `kind`.

    Raises ValueError that names the field, the value and the choices.
    """
    if isinstance(scheme, kind):
        return scheme
    if isinstance(scheme, str) and scheme in registry:
        return registry[scheme]
    raise ValueError(f"{field}: unknown value {scheme!r}; choose one of {', '.join(registry)}")
