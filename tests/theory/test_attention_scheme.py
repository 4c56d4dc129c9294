"""What a variant of attention of a user's own may not be."""

import math

import pytest

from theory import AttentionScheme


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        *(("temperature", value, "positive") for value in (0.0, -0.5, math.nan)),
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


def test_the_least_that_is_allowed() -> None:
    scheme = AttentionScheme("mine", temperature=1e-9, cap=1e-9, clip=(0.0, 1.0))
    assert (scheme.temperature, scheme.cap, scheme.clip) == (1e-9, 1e-9, (0.0, 1.0))
