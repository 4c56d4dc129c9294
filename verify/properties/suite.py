"""What `pytest --init-scheme` collects."""

from verify.pytest_plugin import SchemeProperty


def test_scheme(scheme_property: SchemeProperty) -> None:
    """A property of the scheme on the command line."""
    scheme_property()
