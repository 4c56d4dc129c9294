"""Each registered rule against numbers worked out from its paper, and what a rule may not be."""

import itertools
import math

import pytest
import sympy as sp

from theory import Architecture, Initialization
from theory.initialization import INITIALIZATIONS, MATRIX_KINDS, SYMBOLS, initialization
from theory.notation import N, T, d, fan_in, fan_out, layer, sigma_1

D, F, KV, H, W, L, S = 96, 250, 32, 6, 1000, 5, 40  # d, d_ff, key-value width, heads, vocabulary, layers, positions
_SMALL = math.sqrt(2 / (5 * D))
_OUTPUTS = ("attention.output", "feed_forward.down")
_FAN = {
    "attention.query": (D, D), "attention.key": (D, KV), "attention.value": (D, KV), "attention.output": (D, D),
    "feed_forward.up": (D, F), "feed_forward.gate": (D, F),
    "feed_forward.down": (F, D), "head": (D, W), "embedding": (W, D), "position": (S, D),
}  # fmt: skip


def _inputs(kind: str) -> int:
    """A table that is looked up has, as a matrix, the width as its number of inputs."""
    return D if kind in ("embedding", "position") else _FAN[kind][0]


_EXPECTED = {
    # Megatron-LM's scaled initialisation on SmallInit; GPT-2's 0.02 with 1/sqrt(2N), positions 0.01 in its code
    "megatron": lambda kind: _SMALL / math.sqrt(2 * L) if kind in _OUTPUTS else _SMALL,
    "gpt2": lambda kind: 0.02 / math.sqrt(2 * L) if kind in _OUTPUTS else 0.01 if kind == "position" else 0.02,
    "xavier": lambda kind: math.sqrt(2 / sum(_FAN[kind])),
    "he": lambda kind: math.sqrt(2 / _inputs(kind)),
    "lecun": lambda kind: math.sqrt(1 / _inputs(kind)),
    "palm": lambda kind: 1.0 if kind in ("embedding", "position") else math.sqrt(1 / _inputs(kind)),
    "small": lambda kind: _SMALL,
    "wang": lambda kind: 2 / (L * math.sqrt(D)) if kind in _OUTPUTS else _SMALL,
}


def test_every_registered_scheme_is_checked_here():
    assert set(_EXPECTED) == set(INITIALIZATIONS)


@pytest.mark.parametrize(("scheme", "kind"), list(itertools.product(_EXPECTED, MATRIX_KINDS)))
def test_rules_have_the_papers_values(scheme, kind):
    arch = Architecture(
        num_layers=L, d_model=D, num_heads=H, num_kv_heads=2, d_ff=F, vocab_size=W, seq_len=S, positions="learned",
        initialization=scheme, embedding="vanilla",
    )  # fmt: skip
    # float64 after 17 digits of SymPy: a handful of roundings
    assert arch.std(kind) == pytest.approx(_EXPECTED[scheme](kind), rel=1e-14)


@pytest.mark.parametrize("scheme", INITIALIZATIONS.values(), ids=INITIALIZATIONS)
def test_rules_are_positive_expressions_with_a_source(scheme):
    assert scheme.source and initialization(scheme.name) is scheme and initialization(scheme) is scheme
    for kind in MATRIX_KINDS:
        assert scheme.rule(kind).free_symbols <= SYMBOLS and scheme.rule(kind).is_positive


def test_widths_stay_symbolic():
    """The depth factor of Megatron's outputs, as a statement for every d and N."""
    scheme = initialization("megatron")
    ratio = scheme.rule("attention.output") / scheme.rule("attention.query")
    assert sp.simplify(ratio - 1 / sp.sqrt(2 * N)) == 0
    xavier = initialization("xavier").rule("attention.value")
    assert sp.simplify(xavier.subs({fan_in: d, fan_out: d}) - 1 / sp.sqrt(d)) == 0


def test_the_default_covers_what_is_not_named():
    mine = Initialization("mine", 0.5, {"head": 1 / d}, "a test")
    assert mine.rule("head") == 1 / d and mine.rule("position") == mine.rule("attention.key") == 0.5


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (T / d, r"the rule uses \['T'\]; it may use only \['N', 'V', 'd', 'fan_in', 'fan_out', 'n'\]"),
        (sp.Symbol("d"), r"the rule uses \['d'\]"),  # not notation's d: without its assumptions
        (sigma_1, r"the rule uses \['sigma_1'\]"),
        (0, "must be a positive number, got 0"),
        (-0.02, "must be a positive number, got -0.02"),
        (sp.nan, "must be a positive number, got nan"),
        (float("nan"), "must be a positive number, got nan"),
        (sp.oo, "must be a positive number, got oo"),
        (sp.I, "must be a positive number, got I"),
        ("1/d", "must be a number or a SymPy expression, got '1/d'"),
        (None, "must be a number or a SymPy expression, got None"),
        (True, "must be a number or a SymPy expression, got True"),
        (sp.Matrix([1]), "must be a number or a SymPy expression, got Matrix"),
    ],
)
@pytest.mark.parametrize("place", ["default", "head"])
def test_bad_rules_are_refused_by_name(rule, why, place):
    default, std = (rule, {}) if place == "default" else (1, {"head": rule})
    with pytest.raises(ValueError, match=rf"^initialization 'mine', {place}: {why}"):
        Initialization("mine", default, std, "a test")


def test_unknown_kinds_are_refused():
    with pytest.raises(
        ValueError, match=r"initialization 'mine': unknown matrix kind 'attention.up'; choose one of em"
    ):
        Initialization("mine", 1, {"attention.up": layer}, "a test")
    with pytest.raises(ValueError, match=r"initialization: unknown value 'kaiming'; choose one of megatron, gpt2"):
        initialization("kaiming")


def test_the_rules_cannot_be_changed_afterwards():
    given = {"head": sp.Integer(1)}
    mine = Initialization("mine", 2, given, "a test")
    given["head"] = sp.Integer(3)
    assert mine.rule("head") == 1
    with pytest.raises(TypeError):
        mine.std["head"] = 3
