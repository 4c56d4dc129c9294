"""Each registered rule against numbers worked out from its paper, and what a rule may not be."""

import itertools
import math
import pickle

import numpy as np
import pytest
import sympy as sp
from scipy import stats

from theory import Architecture, Initialization, bound, predict
from theory.block import BLOCKS
from theory.initialization import INITIALIZATIONS, MATRIX_KINDS, SYMBOLS, initialization, truncated_std
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


_BRANCH = ("attention.value", "attention.output", "feed_forward.up", "feed_forward.gate", "feed_forward.down")
_TABLES = ("embedding", "position", "head")


def _gained(kind: str, gain: float, table: float) -> float:
    """Xavier times a gain on what a branch's size is linear in; tables apart."""
    return table if kind in _TABLES else math.sqrt(2 / sum(_FAN[kind])) * (gain if kind in _BRANCH else 1)


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
    "opt": lambda kind: 0.006 / math.sqrt(2 * L) if kind in _OUTPUTS else 0.006,
    "bloom": lambda kind: math.sqrt(1 / (3 * D)) / (math.sqrt(2 * L) if kind in _OUTPUTS else 1),
    "llama": lambda kind: 0.02,
    "olmo2": lambda kind: 0.02 * 0.9865783925581086,  # scipy.stats.truncnorm(-3, 3).std()
    "deepnorm": lambda kind: _gained(kind, 40**-0.25, D**-0.5),  # 8 N = 40
    "glm": lambda kind: _gained(kind, 10**-0.5, math.sqrt(1 / (3 * D))),
    "t_fixup": lambda kind: (
        math.sqrt(2 / (D + W))
        if kind == "head"
        else _gained(kind, 45**-0.25, D**-0.5 * (45**-0.25 if kind[0] == "e" else 1))
    ),
    "ssp": lambda kind: math.sqrt(1 / _inputs(kind)),
    "mup_simple": lambda kind: math.sqrt(1 / _inputs(kind)),
    "mup": lambda kind: {"embedding": 1, "position": 1, "head": 1 / D}.get(kind, math.sqrt(1 / _inputs(kind))),
    "zero_output": lambda kind: 0 if kind in _OUTPUTS else math.sqrt(1 / _inputs(kind)),
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
        allowed = scheme.rule(kind).is_positive or (scheme.name == "zero_output" and kind in _OUTPUTS)
        assert scheme.rule(kind).free_symbols <= SYMBOLS and allowed


@pytest.mark.parametrize("cutoff", [0.5, 1, 2, 3, 6])
def test_a_truncated_gaussians_std_is_scipys(cutoff):
    expected = stats.truncnorm(-cutoff, cutoff).std()
    assert float(truncated_std(cutoff)) == pytest.approx(expected, rel=1e-9)


def test_published_roundings():
    """0.0048 of BLOOM's and 0.0052 of GLM-130B's launch scripts, two digits each."""
    assert float(initialization("bloom").default.subs(d, 14336)) == pytest.approx(0.0048, abs=5e-5)
    assert float(initialization("glm").rule("embedding").subs(d, 12288)) == pytest.approx(0.0052, abs=5e-5)


def test_only_the_scheme_is_cut_off_not_a_table_of_the_embeddings_own():
    arch = Architecture(initialization="olmo2", embedding="vanilla")
    assert arch.truncation("embedding") == arch.truncation("attention.key") == 3
    unit = Architecture(initialization="olmo2", embedding="unit")
    assert unit.truncation("embedding") is None and unit.truncation("head") == 3
    ssp = Architecture(initialization="ssp", embedding="vanilla")
    assert ssp.truncation("embedding") is None and ssp.truncation("feed_forward.up") == 2


@pytest.mark.parametrize("kind", ["attention.value", "embedding", "head"])
def test_zero_is_for_a_blocks_output_matrices_alone(kind):
    assert Initialization("mine", 1, dict.fromkeys(_OUTPUTS, 0), "a test").rule("feed_forward.down") == 0
    with pytest.raises(ValueError, match=rf"^initialization 'mine', {kind}: must be a positive number, got 0"):
        Initialization("mine", 1, {kind: 0}, "a test")
    vanishing = Initialization("mine", 1, {"attention.output": 1 - layer}, "a test")
    with pytest.raises(ValueError, match="not a positive number"):
        Architecture(initialization=vanishing).std("attention.output")


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_that_begin_as_the_identity_are_predicted(block):
    arch = Architecture(
        num_layers=2, d_model=32, vocab_size=16, seq_len=8, block=block, initialization="zero_output"
    )  # fmt: skip
    p = predict(arch, batch_size=2, networks=2)
    numbers = [p.shortcut_std, p.gradient_norm, *p.parameter_gradient_norm.values(), *p.branch_rms.values()]
    assert all(np.isfinite(values).all() for values in numbers)
    assert not p.parameter_gradient_norm["feed_forward.up"].any() and not p.branch_rms["attention"].any()
    if not BLOCKS[block].post_norm and BLOCKS[block].shortcut == 1:
        np.testing.assert_allclose(p.gradient_norm, p.gradient_norm[-1], rtol=1e-6)
        np.testing.assert_allclose(p.shortcut_std, p.shortcut_std[0], rtol=1e-6)


def test_a_block_that_begins_as_the_identity_has_a_bound_of_1():
    arch = Architecture(num_layers=2, d_model=32, vocab_size=16, seq_len=8, initialization="zero_output")
    assert bound(arch, shortcut_std=np.ones(5)).product == 1


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
    with pytest.raises(
        ValueError, match=r"^kind: unknown matrix kind 'attention.up'; choose one of embedding, position"
    ):
        initialization("megatron").rule("attention.up")
    with pytest.raises(ValueError, match=r"initialization: unknown value 'kaiming'; choose one of megatron, gpt2"):
        initialization("kaiming")


def test_the_rules_cannot_be_changed_afterwards():
    given = {"head": sp.Integer(1)}
    mine = Initialization("mine", 2, given, "a test")
    given["head"] = sp.Integer(3)
    assert mine.rule("head") == 1
    with pytest.raises(TypeError):
        mine.std["head"] = 3
    with pytest.raises(TypeError):
        initialization("ssp").truncation["embedding"] = 1.0


def test_truncations_are_checked_and_compared():
    one, other = (Initialization("mine", 1, {}, "a test", {"head": cutoff}) for cutoff in (2.0, 3.0))
    assert one != other and hash(one) != hash(other) and pickle.loads(pickle.dumps(one)) == one
    for cutoff in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="initialization 'mine', truncation of head: must be a positive number"):
            Initialization("mine", 1, {}, "a test", {"head": cutoff})
    with pytest.raises(ValueError, match="unknown matrix kind 'heads'"):
        Initialization("mine", 1, {}, "a test", {"heads": 2.0})
