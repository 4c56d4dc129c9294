"""The one description: what it refuses, in which words, and what it computes from its fields."""

import copy
import dataclasses
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from theory import Architecture, Block, Embedding, Initialization
from theory.architecture import FIELD_NAMES
from theory.initialization import MATRIX_KINDS
from theory.notation import N, V, d, layer

SIZES = {
    "num_layers": 1, "d_model": 1, "num_heads": 1, "num_kv_heads": 1, "d_ff": 1, "vocab_size": 2, "seq_len": 1,
}  # fmt: skip
CHOICES = {
    "block": "pre_ln, post_ln, parallel, sandwich, output_norm, deepnorm, rezero, layer_scale, ln_scaling",
    "norm": "layer_norm, rms_norm",
    "activation": "identity, relu, gelu, gelu_tanh, silu, swiglu, geglu",
    "positions": "none, learned, sinusoidal, rope, alibi",
    "attention": "standard, qk_norm, qk_norm_cap, qkv_norm, qk_fc_norm, soft_cap, soft_temp, mup_attention, soft_clip",
    "initialization": "megatron, gpt2, xavier, he, lecun, palm, small, wang",
    "embedding": "vanilla, scaled, layer_norm, detach, unit",
}


def refusal(**fields) -> str:
    """The message with which Architecture refuses these fields."""
    with pytest.raises(ValueError) as caught:
        Architecture(**fields)
    return str(caught.value)


@pytest.mark.parametrize("field", CHOICES)
@pytest.mark.parametrize("value", ["bogus", "", "GELU", None, 7j, ["gelu"], b"gelu"])
def test_unknown_scheme_names_field_value_and_choices(field, value):
    message = refusal(**{field: value})
    assert message.startswith(f"{field}: unknown value {value!r}; choose one of {CHOICES[field]}"), message
    assert "\n" not in message


def test_a_matrix_of_zeros_has_no_norm_to_divide_by():
    assert refusal(attention="sigma_reparam", initialization="zero_output") == (
        "attention: 'sigma_reparam' divides attention.output by its norm, which initialization 'zero_output' makes 0; "
        "choose another of the two"
    )


@given(
    st.sampled_from(sorted(SIZES)),
    st.one_of(
        st.floats(allow_nan=True, allow_infinity=True), st.integers(max_value=0), st.booleans(), st.text(), st.binary()
    ),
)
def test_sizes_are_whole_numbers(field, value):
    assert refusal(**{field: value}) == f"{field}: must be a whole number of at least {SIZES[field]}, got {value!r}"


def test_a_vocabulary_has_two_words():
    assert refusal(vocab_size=1) == "vocab_size: must be a whole number of at least 2, got 1"


@pytest.mark.parametrize("value", [None, [4], np.float32(4), np.array([4, 4])])
@pytest.mark.parametrize("field", ["num_layers", "d_model", "num_heads", "vocab_size", "seq_len"])
def test_sizes_are_no_other_objects(field, value):
    assert refusal(**{field: value}).startswith(f"{field}: must be a whole number")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e-9, True, False, "1", None, 1j])
@pytest.mark.parametrize(("field", "sort"), [("norm_epsilon", "non-negative"), ("logit_scale", "positive")])
def test_numbers_are_finite_and_not_negative(field, sort, value):
    assert refusal(**{field: value}) == f"{field}: must be a {sort} number, got {value!r}"


def test_zero_is_an_epsilon_but_no_scale():
    assert Architecture(norm_epsilon=0).norm_epsilon == 0
    assert refusal(logit_scale=0.0) == "logit_scale: must be a positive number, got 0.0"


@pytest.mark.parametrize("field", ["bias", "tied"])
@pytest.mark.parametrize("value", [1, 0, None, "yes"])
def test_switches_are_booleans(field, value):
    assert refusal(**{field: value}) == f"{field}: must be True or False, got {value!r}"


def test_impossible_combinations_name_what_would_work():
    assert refusal(d_model=12, num_heads=5) == (
        "num_heads: d_model = 12 is not divisible by 5; choose one of 1, 2, 3, 4, 6, 12"
    )
    assert refusal(d_model=12, num_heads=6, num_kv_heads=4) == (
        "num_kv_heads: num_heads = 6 is not divisible by 4; choose one of 1, 2, 3, 6"
    )
    assert refusal(num_heads=4, num_kv_heads=8).startswith("num_kv_heads: num_heads = 4 is not divisible by 8")
    assert (
        refusal(d_model=6, num_heads=2)
        == "positions: 'rope' needs an even d_head, got 3; without: none, learned, alibi"
    )
    assert refusal(d_model=5, num_heads=1, positions="sinusoidal").startswith("positions: 'sinusoidal' needs an even")
    assert refusal(d_model=2, num_heads=1).startswith("d_model: LayerNorm leaves d_model - 2 directions")
    assert (
        refusal(d_model=8, num_heads=4, positions="none", attention="qk_norm")
        == "num_heads: LayerNorm in every head needs a d_head of at least 3, got 2"
    )
    Architecture(d_model=9, num_heads=3, positions="none", attention="qk_norm")
    Architecture(d_model=8, num_heads=4, positions="none", attention="qk_norm", norm="rms_norm")
    Architecture(d_model=6, num_heads=2, positions="sinusoidal")
    Architecture(d_model=1, num_heads=1, norm="rms_norm", positions="learned")


def test_defaults_that_follow_from_other_fields():
    arch = Architecture(d_model=24, num_heads=6)
    assert (arch.kv_heads, arch.ff_width, arch.d_head, arch.num_sublayers) == (6, 96, 4, 48)
    arch = dataclasses.replace(arch, num_kv_heads=2, d_ff=10, num_layers=3)
    assert (arch.kv_heads, arch.ff_width, arch.num_sublayers) == (2, 10, 6)


def test_shapes_of_all_kinds():
    arch = Architecture(num_layers=1, d_model=24, num_heads=6, num_kv_heads=2, d_ff=10, vocab_size=7, seq_len=5)
    assert {kind: arch.shape(kind) for kind in MATRIX_KINDS} == {
        "embedding": (7, 24), "position": (5, 24), "attention.query": (24, 24), "attention.key": (24, 8),
        "attention.value": (24, 8), "attention.output": (24, 24), "feed_forward.up": (24, 10),
        "feed_forward.gate": (24, 10), "feed_forward.down": (10, 24), "head": (24, 7),
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"kind: unknown matrix kind 'gate'; choose one of embedding, position"):
        arch.shape("gate")
    with pytest.raises(ValueError, match="kind: unknown matrix kind 'gate'"):
        arch.std("gate")


def test_frozen_hashable_and_equal_by_value():
    one, other = Architecture(d_model=64), Architecture(d_model=64)
    assert one == other and hash(one) == hash(other) and one != dataclasses.replace(one, d_model=32)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.d_model = 32
    assert FIELD_NAMES[:3] == ("num_layers", "d_model", "num_heads")


def test_replace_checks_again():
    arch = Architecture()
    assert dataclasses.replace(arch, num_layers=2).num_layers == 2 and arch.num_layers == 24
    with pytest.raises(ValueError, match="num_heads: d_model = 128 is not divisible by 5"):
        dataclasses.replace(arch, num_heads=5)


def own() -> Architecture:
    """An architecture with objects of a user's own in three places."""
    mine = Initialization("mine", 1 / d, {"head": 1 / V, "attention.value": layer / N}, "a test")
    return Architecture(initialization=mine, embedding=Embedding("mine", multiplier=sp.sqrt(d) / 2))


def test_ones_own_schemes_are_compared_by_value_and_survive_copying():
    assert own() == own() and hash(own()) == hash(own())
    assert copy.deepcopy(own()) == own()
    assert pickle.loads(pickle.dumps(own())) == own()
    swapped = Initialization("mine", 1 / d, {"attention.value": layer / N, "head": 1 / V}, "a test")
    assert swapped == own().initialization and hash(swapped) == hash(own().initialization)


def test_std_is_one_number_for_a_table_and_one_a_layer_for_a_block():
    for kind in MATRIX_KINDS:
        std = own().std(kind)
        assert std.dtype == np.float64 and std.shape == ((24,) if "." in kind else (1,))
        with pytest.raises(ValueError, match="read-only"):
            std[0] = 1.0  # it is cached: a caller that wrote to it would change the scheme for all
    np.testing.assert_allclose(own().std("attention.value"), np.arange(1, 25) / 24, rtol=1e-15)
    assert own().std("head") == 1 / 256 and own().std("feed_forward.up")[-1] == 1 / 128


@pytest.mark.parametrize(
    "rule", [1 - layer, d - 128, 1 / (layer - 1), 1 / (d - 128), sp.sqrt(1 - d), sp.log(layer), d - d * layer]
)
def test_a_rule_without_a_positive_value_at_this_size_is_refused(rule):
    arch = Architecture(num_layers=3, initialization=Initialization("mine", rule, {}, "a test"))
    with pytest.raises(ValueError, match=r"initialization: the rule .* for attention.query gives .* positive number"):
        arch.std("attention.query")


@pytest.mark.parametrize("name", ["shortcut", "branch", "input"])
@pytest.mark.parametrize(
    ("rule", "values"),
    [(2 - layer, "[ 1.  0. -1.]"), (1 / (layer - 1), "[nan 1.  0.5]"), (sp.sqrt(2 - N), "[nan nan nan]")],
)
def test_a_blocks_factor_is_a_number_that_is_not_negative(name: str, rule: sp.Expr, values: str) -> None:
    assert refusal(num_layers=3, block=Block("mine", **{name: rule})) == (
        f"block: the rule {rule} for {name} gives {values}, not numbers of at least 0"
    )


def test_an_embedding_rule_is_evaluated_at_this_size():
    arch = Architecture(d_model=32, vocab_size=50, num_layers=3)
    assert arch.evaluate(d * V / N) == pytest.approx(32 * 50 / 3, rel=1e-15)
    for rule in (d - 40, d - 32, sp.sqrt(-d), 1 / (d - 32)):
        with pytest.raises(ValueError, match=r"embedding: the rule .* gives .* at this size, not a positive number"):
            arch.evaluate(rule)


@pytest.mark.parametrize("embedding", ["vanilla", "scaled", "layer_norm", "detach", 3.0])
def test_only_an_embedding_with_a_std_of_its_own_changes_the_table(embedding):
    arch = Architecture(initialization="lecun", embedding=embedding)
    assert arch.std("embedding") == pytest.approx(128**-0.5, rel=1e-15)
    own_std = Architecture(initialization="lecun", embedding="unit")
    assert own_std.std("embedding") == 1 and own_std.std("head") == pytest.approx(128**-0.5, rel=1e-15)


def test_import_theory_imports_no_jax():
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, theory; print(*sorted({name.split('.')[0] for name in sys.modules}))"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert {"theory", "sympy", "numpy"} <= set(loaded)
    assert not {"jax", "jaxlib", "optax", "matplotlib", "pandas", "xarray", "models", "verify"} & set(loaded)
