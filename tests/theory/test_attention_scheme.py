"""What a variant of attention of a user's own may not be."""

import math

import pytest
import sympy as sp

from theory import AttentionScheme
from theory.notation import d, d_head


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        *(("temperature", value, "a positive number") for value in (0.0, -0.5, math.nan)),
        *(("cap", value, "positive or None") for value in (0.0, -50.0, math.nan)),
        *(
            ("clip", value, "(low, high) with low <= 0 and high >= 1")
            for value in ((0.1, 1.0), (0.0, 0.9), (1.0, 0.0), (math.nan, 1.0))
        ),
    ],
)
def test_wrong_numbers_are_refused_by_name(field: str, value: object, wanted: str) -> None:
    with pytest.raises(ValueError) as caught:
        AttentionScheme("mine", **{field: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"attention 'mine', {field}: must be {wanted}, got {value!r}"


def test_a_temperature_that_depends_on_the_heads_width_has_to_be_one() -> None:
    scheme = AttentionScheme("mine", temperature=1 / sp.sqrt(d_head - 16), source="a test")
    assert scheme.temperature_at(20) == 0.5
    for width, value in ((16, "zoo"), (12, "-I/2")):
        with pytest.raises(ValueError, match=f"temperature: .* gives {value} at d_head = {width}, not a positive num"):
            scheme.temperature_at(width)
    with pytest.raises(ValueError, match=r"temperature: the rule uses \['d'\]"):
        AttentionScheme("mine", temperature=1 / d)


def test_the_least_that_is_allowed() -> None:
    scheme = AttentionScheme("mine", temperature=1e-9, cap=1e-9, clip=(0.0, 1.0))
    assert (scheme.temperature, scheme.cap, scheme.clip) == (1e-9, 1e-9, (0.0, 1.0))
