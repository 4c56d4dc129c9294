"""Property tests of models of one's own: what of them is tested, and what they must say of their stream."""

import equinox
import jax
import jax.numpy as jnp
import pytest

from verify import properties
from verify.properties import PROPERTIES, Limits, Model, Violation, check
from verify.properties.scheme import SchemeError

QUICK = Limits(examples=2, networks=1, seconds=0.0)


def test_a_model_of_ones_own():
    """A linear bigram model, its fans as its matrix has them."""

    def init(key):
        return {"table": jax.random.normal(key, (11, 8)), "out": jax.random.normal(jax.random.split(key)[0], (8, 11))}

    def loss(params, tokens):
        logits = params["table"][tokens[:, :-1]] @ params["out"]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1))

    report = check(Model(init, loss), limits=Limits(examples=1, networks=1), vocab_size=11, seq_len=4)
    outcomes = {result.property: result.outcome for result in report.results}
    assert outcomes["finite"] == outcomes["independent_matrices"] == outcomes["determined_by_key"] == "tested"
    assert outcomes["predicted"] == outcomes["declared_std"] == outcomes["width_scaling"] == "not applicable"
    assert report.passed
    overflowing = Model(init, lambda params, tokens: jnp.exp(4 * loss(params, tokens)))
    with pytest.raises(Violation, match="in float16 that are not finite"):
        properties.finite(overflowing, limits=QUICK, vocab_size=11, seq_len=4)


def _marking(std, num_layers=None):
    """Bigrams through norms and square matrices added to a stream, of that standard deviation where it begins."""

    def init(key, arch):
        depth = num_layers or arch.num_layers
        keys = jax.random.split(key, depth + 2)
        d_model, vocab_size = arch.d_model, arch.vocab_size
        return {
            "table": std * jax.random.normal(keys[0], (vocab_size, d_model)),
            "blocks": [jax.random.normal(each, (d_model, d_model)) * d_model**-0.5 for each in keys[2:]],
            "head": jax.random.normal(keys[1], (d_model, vocab_size)) * d_model**-0.5,
            "heads": arch.num_heads,  # no array, as a module's settings are none
        }

    def normed(x):
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)

    def loss(params, tokens, arch, place):
        x = place(params["table"][tokens[:, :-1]])
        for weight in params["blocks"]:
            x = place(x + normed(x) @ weight)
        logits = jax.nn.log_softmax(normed(x) @ params["head"])
        return -jnp.mean(jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1))

    return Model(init, loss)


def test_a_model_of_ones_own_that_marks_its_places():
    """Its norms divide by the stream: a gradient at a small one is as much larger as the stream then grows."""
    small = {"d_model": 16, "num_heads": 1, "num_layers": 2, "vocab_size": 11, "seq_len": 4}
    limits = Limits(networks=1, examples=1)
    with pytest.raises(
        Violation, match=r"gradient norm at the first place.*at most 10(.|\n)*derive telescoping"
    ) as found:
        properties.amplification(_marking(0.05), limits=limits, **small)
    assert 15 < found.value.finding.measured < 60  # sqrt(1 + 2 / 0.05^2) = 28
    with pytest.raises(Violation, match=r"stream at place 2 over that at place 0.*at most 10"):
        properties.stream_band(_marking(0.05), limits=limits, **small)
    report = check(_marking(1.0), limits=limits, **small)
    outcomes = {result.property: result.outcome for result in report.results}
    for name in ("finite", "amplification", "stream_band", "growth_exponent"):
        assert outcomes[name] == "tested"
    assert outcomes["predicted"] == outcomes["two_requirements"] == "not applicable"
    shallow = properties.growth_exponent(_marking(1.0, num_layers=2), limits=limits, **small)
    assert shallow.outcome == "not applicable" and "num_layers changes nothing" in shallow.reason
    marking = _marking(1.0)
    unmarked = Model(marking.init, lambda params, tokens, arch: marking.loss(params, tokens, arch, lambda x: x))
    deaf = properties.amplification(unmarked, limits=limits, **small)
    assert deaf.outcome == "not applicable" and "x = place(x)" in deaf.reason
    first = Model(marking.init, lambda params, place, tokens, arch: marking.loss(params, tokens, arch, place))
    assert properties.amplification(first, limits=limits, **small).outcome == "tested"
    careless = Model(marking.init, lambda params, tokens, place: jnp.sum(place(place(params["table"])[:5])))
    with pytest.raises(
        SchemeError, match=r"^scheme Model: place: place 1 of the stream has 80 numbers, the first 176$"
    ):
        properties.amplification(careless, limits=limits, **small)


class Bigrams(equinox.Module):
    """Settings, a function and arrays, as a user's module has them."""

    table: equinox.nn.Embedding
    mlp: equinox.nn.MLP
    head: equinox.nn.Linear
    depth: int

    def __init__(self, key, arch):
        keys = jax.random.split(key, 3)
        self.depth = arch.num_layers
        self.table = equinox.nn.Embedding(arch.vocab_size, arch.d_model, key=keys[0])
        self.mlp = equinox.nn.MLP(arch.d_model, arch.d_model, 2 * arch.d_model, 1, key=keys[1])
        self.head = equinox.nn.Linear(arch.d_model, arch.vocab_size, key=keys[2])

    def __call__(self, token, place):
        x = place(self.table(token))
        for _ in range(self.depth):
            x = place(x + self.mlp(x))
        return jax.nn.log_softmax(self.head(x))


def test_an_equinox_module():
    """Mapped over tokens and sequences; its arrays are the parameters, the rest is put together again in the loss."""

    def init(key, arch):
        return equinox.filter(Bigrams(key, arch), equinox.is_array)

    def loss(params, tokens, arch, place):
        shapes = equinox.filter_eval_shape(Bigrams, jax.random.key(0), arch)
        rest = equinox.filter(shapes, lambda leaf: not hasattr(leaf, "shape"))
        module = equinox.combine(params, rest)
        logits = jax.vmap(jax.vmap(lambda token: module(token, place)))(tokens[:, :-1])
        return -jnp.mean(jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1))

    scheme, held = Model(init, loss), {"d_model": 16, "num_heads": 1, "num_layers": 2, "vocab_size": 11, "seq_len": 4}
    for name in ("finite", "stream_band", "amplification", "independent_matrices"):
        assert PROPERTIES[name](scheme, limits=Limits(networks=1, examples=1), **held).outcome == "tested"
