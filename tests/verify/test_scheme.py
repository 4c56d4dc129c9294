"""What is no scheme, and what a scheme's own code does wrong, is one error that says so."""

import dataclasses

import jax
import pytest

import models
from models.initialization import assemble
from theory import Architecture
from theory.initialization import INITIALIZATIONS
from verify import properties
from verify.properties import Limits, Model, SchemeError, as_scheme

ODD = Architecture(
    num_layers=3, d_model=16, num_heads=4, num_kv_heads=2, vocab_size=7, seq_len=6, initialization="small"
)  # fmt: skip


def fails_when_deep(arch):
    if arch.num_layers > 2:
        raise RuntimeError("my own bug\nin two lines")
    return jax.nn.initializers.normal(0.02)


def test_what_a_scheme_raises_is_one_error_with_its_cause():
    """During the search; in the replay of what Hypothesis found, the same once more."""
    of_model = Model(lambda key, arch: models.init(fails_when_deep(arch) and key, arch))
    for scheme in (fails_when_deep, of_model):
        said = r"^scheme \w+ raised RuntimeError: my own bug; at Architecture\(num_layers=3, [^\n]*\)$"
        with pytest.raises(SchemeError, match=said) as found:
            properties.zero_mean(scheme, limits=Limits(examples=6), num_layers=[1, 3], d_model=8, num_heads=2, d_ff=32)
        assert isinstance(found.value.__cause__, RuntimeError)
    with pytest.raises(SchemeError, match="raised RuntimeError"):
        properties.zero_mean(fails_when_deep, arch=ODD)


def raising(key, shape, dtype):
    raise RuntimeError("at once")


def turned(key, shape, dtype):
    return jax.random.normal(key, shape[::-1], dtype) * (2 / shape[1]) ** 0.5


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (raising, "^scheme raising raised RuntimeError: at once; at Arch"),
        ("jax.nn.initializers:variance_scaling",
         r"got a function; variance_scaling\(scale, mode, distribution\) was called with \(key, shape, dtype\): .* def "
         r"scheme\(\): return variance_scaling\("),
        ("jax.nn.initializers:constant", r"constant\(value\) was called with \(arch\): .*: return constant\("),
        (turned, r"scheme turned: feed_forward\.up: expected an array of shape \(8, 32\), got one of \(32, 8\)"),
    ],
)  # fmt: skip
def test_an_initializer_that_gives_no_matrix_is_refused_at_once(scheme, message):
    with pytest.raises(SchemeError, match=message):
        as_scheme(scheme, "he")


def test_a_transformer_of_other_shapes_is_refused():
    """Its own transposed fans would be the right ones."""

    def transposed(key, arch):
        drawn = models.init(key, dataclasses.replace(arch, initialization="he")).matrices
        turned = {kind: weight.transpose(0, 2, 1) for kind, weight in drawn.items()}
        return assemble(arch, lambda kind: turned[kind] if "." in kind else turned[kind][0])

    fixed = dataclasses.replace(ODD, num_layers=2)
    for init, message in (
        (transposed, r"attention.key: expected an array of shape \(3, 16, 8\), got one of \(3, 8, 16\)$"),
        (lambda key: models.init(key, fixed), r"attention.key: expected an array of shape \(3, 16, 8\), got one of"),
        (lambda key: models.init(key, dataclasses.replace(ODD, tied=True)), "expected the matrices .*head.*, got"),
    ):
        with pytest.raises(SchemeError, match=message):
            properties.declared_std(Model(init), arch=ODD, declared="he")
    assert properties.zero_mean(Model(lambda key: models.init(key, fixed)), arch=fixed).outcome == "tested"


def test_a_layout_of_another_shape_is_refused():
    flat = {"default": lambda key, shape, dtype: jax.random.normal(key, shape[-2:], dtype)}
    with pytest.raises(SchemeError, match=r"expected an array of shape \(3, 16, 16\), got one of \(16, 16\)"):
        properties.layouts(flat, arch=ODD, limits=Limits(layouts=("stacked",)))


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        (3, {}, "scheme: int is a int; expected a name"),
        ("nonsense", {}, "unknown value 'nonsense'"),
        ("no_such_module:scheme", {}, "scheme: cannot load 'no_such_module:scheme'"),
        ("jax.nn.initializers:nothing", {}, "cannot load"),
        ("he", {"declared": "he"}, "he is a symbolic scheme, which is its own rule"),
        ({"default": 1, "attention.quary": 2}, {}, "unknown matrix kind 'attention.quary'"),
        ({"head": jax.nn.initializers.zeros}, {}, "no initializer for embedding.*give one as 'default'"),
        (lambda a, b, c, e: None, {}, "needs a, b, c, e; expected"),
        (lambda key, shape: None, {}, "needs key, shape; expected"),
        ({"default": 1}, {}, "default must be an initializer"),
        (lambda arch: INITIALIZATIONS["he"], {}, "gives a symbolic scheme"),
        (as_scheme(jax.nn.initializers.he_normal()), {"declared": "he"}, "declared: init is made already; give it"),
        (jax.nn.initializers.zeros, {"distribution": "cauchy"}, "distribution: unknown value 'cauchy'"),
    ],
)  # fmt: skip
def test_what_is_no_scheme_is_named(scheme, options, message):
    with pytest.raises(ValueError, match=message):
        as_scheme(scheme, **options)
