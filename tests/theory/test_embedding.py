"""The embedding methods: each changes one thing of three, and a number is a multiplier."""

import math

import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from theory import Architecture, Embedding
from theory.embedding import EMBEDDINGS, embedding
from theory.notation import N, V, d


def test_each_method_changes_its_own_axis_only():
    plain = (1, False, 1, None)
    expected = {
        "vanilla": plain,
        "scaled": (sp.sqrt(d), *plain[1:]),
        "layer_norm": (1, True, 1, None),
        "detach": (1, False, sp.Rational(1, 10), None),
        "unit": (1, False, 1, 1),
    }
    assert {
        name: (method.multiplier, method.layer_norm, method.gradient_share, method.table_std)
        for name, method in EMBEDDINGS.items()
    } == expected
    assert all(embedding(name) is method for name, method in EMBEDDINGS.items())


def test_scaled_gives_the_table_of_the_paper():
    """Std of the embedding that enters block 1: sqrt(2/5) under Scaled Embed at any width (arXiv 2312.16903)."""
    for width in (32, 1024):
        arch = Architecture(d_model=width, embedding="scaled")
        assert arch.std("embedding")[0] * arch.evaluate(embedding("scaled").multiplier) == pytest.approx(0.4**0.5)


@given(st.floats(min_value=1e-300, max_value=1e300))
def test_a_number_is_a_multiplier_also_as_text(number):
    for scheme in (number, repr(number)):
        method = Architecture(embedding=scheme)
        assert method.evaluate(embedding(scheme).multiplier) == pytest.approx(number, rel=1e-14)
    other = embedding(number)
    assert (other.layer_norm, other.gradient_share, other.table_std) == (False, 1, None)


def test_whole_numbers_and_expressions():
    assert Architecture().evaluate(embedding(3).multiplier) == 3.0
    mine = Embedding("mine", multiplier=sp.sqrt(d) / V, gradient_share=0.5, table_std=1 / d)
    arch = Architecture(d_model=64, vocab_size=32, embedding=mine)
    assert arch.evaluate(mine.multiplier) == 0.25 and arch.std("embedding") == 1 / 64


@pytest.mark.parametrize("number", [0, 0.0, -1, -1e-9, math.nan, math.inf, -math.inf, "0", "nan", "inf", "-3"])
def test_numbers_that_are_no_multiplier(number):
    with pytest.raises(ValueError, match=r"^embedding 'times .*', multiplier: must be a positive number, got"):
        Architecture(embedding=number)


@pytest.mark.parametrize("scheme", ["Scaled", "sqrt(d)", "1,5", "", True, None, [1.0], (1,), {"multiplier": 1}])
def test_unknown_methods(scheme):
    with pytest.raises(ValueError, match=r"^embedding: unknown value .*; choose one of .*, a number \(multiplier\)"):
        embedding(scheme)


@pytest.mark.parametrize("field", ["multiplier", "gradient_share", "table_std"])
@pytest.mark.parametrize(
    ("value", "why"),
    [
        (N * d, r"the rule uses \['N'\]; it may use only \['V', 'd'\] of theory.notation"),
        (sp.Symbol("d"), r"the rule uses \['d'\]"),
        (0, "must be a positive number, got 0"),
        (-1.5, "must be a positive number, got -1.5"),
        (math.nan, "must be a positive number, got nan"),
        (math.inf, "must be a positive number, got inf"),
        (sp.I, "must be a positive number, got I"),
        ("sqrt(d)", r"must be a number or a SymPy expression, got 'sqrt\(d\)'"),
        (True, "must be a number or a SymPy expression, got True"),
    ],
)
def test_bad_fields_are_refused_by_name(field, value, why):
    with pytest.raises(ValueError, match=f"^embedding 'mine', {field}: {why}"):
        Embedding("mine", **{field: value})


def test_a_share_is_at_most_one_and_a_switch_is_a_boolean():
    assert Embedding("mine", gradient_share=1).gradient_share == 1
    with pytest.raises(ValueError, match=r"^embedding 'mine', gradient_share: must lie in \(0, 1\], got 1.01"):
        Embedding("mine", gradient_share=1.01)
    with pytest.raises(ValueError, match=r"^embedding 'mine', layer_norm: must be True or False, got 1"):
        Embedding("mine", layer_norm=1)
