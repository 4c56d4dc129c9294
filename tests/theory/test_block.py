"""What an arrangement of a user's own may not be."""

import pytest
import sympy as sp

from theory import Block
from theory.notation import N, d, layer


@pytest.mark.parametrize("field", ["pre_norm", "output_norm", "post_norm", "inner_norm", "final_norm", "parallel"])
@pytest.mark.parametrize("value", [1, None, "yes"])
def test_switches_are_booleans(field: str, value: object) -> None:
    with pytest.raises(ValueError) as caught:
        Block("mine", **{field: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"block 'mine', {field}: must be True or False, got {value!r}"


@pytest.mark.parametrize("value", ["matrix", True, ""])
def test_a_learned_factor_is_a_scalar_or_a_vector(value: object) -> None:
    with pytest.raises(ValueError) as caught:
        Block("mine", learned=value)  # type: ignore[arg-type]
    assert str(caught.value) == f"block 'mine', learned: unknown value {value!r}; choose one of None, scalar, vector"


@pytest.mark.parametrize(
    ("field", "rule", "why"),
    [
        ("branch", -1, "must be not negative, got -1"),
        ("branch", -layer / N, "must be not negative, got -n/N"),
        ("shortcut", 0, "must be positive, got 0"),
        ("shortcut", -sp.sqrt(N), "must be positive, got -sqrt(N)"),
        ("input", 0, "must be positive, got 0"),
        ("input", -0.5, "must be positive, got -0.500000000000000"),
        ("branch", 1 / d, "the rule uses ['d']; it may use only ['N', 'n'] of theory.notation"),
        ("input", "1/n", "must be a number or a SymPy expression, got '1/n'"),
    ],
)
def test_factors_are_rules_that_are_not_negative(field: str, rule: sp.Expr, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        Block("mine", **{field: rule})
    assert str(caught.value) == f"block 'mine', {field}: {why}"


def test_a_branch_alone_may_start_at_zero() -> None:
    assert Block("mine", branch=0).branch == 0  # type: ignore[arg-type]
