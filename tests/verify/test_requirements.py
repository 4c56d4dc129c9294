"""The limits of the two requirements against Jacobians of sampled networks, by automatic differentiation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.transformer import addition, embed
from theory import Architecture, Block
from theory.block import BLOCKS, block
from theory.block_requirements import effect

FAR = 64.0
ARCH = Architecture(  # one token: attention is its value, without scores
    num_layers=1, d_model=16, num_heads=2, d_ff=32, vocab_size=5, seq_len=1, activation="relu", norm="rms_norm",
    norm_epsilon=0.0, positions="none", embedding=1.0, initialization="he",
)  # fmt: skip
PULLED = {
    "outputs": (("attention", "output"), ("feed_forward", "down")),
    "inner": (("attention", "value"), ("feed_forward", "up")),
}


def _scaled(params: models.Transformer, matrices: tuple[tuple[str, str], ...], factor: float) -> models.Transformer:
    blocks = params.blocks
    for part, name in matrices:
        layer = getattr(blocks, part)
        linear = getattr(layer, name)
        linear = dataclasses.replace(linear, weight=factor * linear.weight)
        blocks = dataclasses.replace(blocks, **{part: dataclasses.replace(layer, **{name: linear})})
    return dataclasses.replace(params, blocks=blocks)


def _measured(scheme: Block, lever: str | None = None, shortcut: float = 1.0) -> dict[str, float]:
    """By part ‖J - a‖ / a, J the Jacobian of a x + b out(f(in pre(x))) at the stream there, before any norm on the sum.

    Each part in an addition of its own; the lever is pulled by FAR.
    """
    scheme = dataclasses.replace(scheme, name="mine", parallel=False, shortcut=scheme.shortcut * shortcut)
    arch = dataclasses.replace(ARCH, block=scheme)
    params = _scaled(models.init(jax.random.key(0), arch), PULLED.get(lever or "", ()), 1 / FAR)
    if lever == "embedding":
        params = dataclasses.replace(params, embedding=FAR * params.embedding)
    bare = dataclasses.replace(arch, block=dataclasses.replace(scheme, post_norm=False, final_norm=True))
    blocks = params.blocks
    for part in ("attention_residual", "feed_forward_residual"):
        blocks = dataclasses.replace(blocks, **{part: dataclasses.replace(getattr(blocks, part), post=None)})
    without = dataclasses.replace(params, blocks=blocks)
    x, found = embed(params, jnp.zeros((1, 1), jnp.int32), arch), {}
    for place, part in enumerate(("attention", "feed_forward")):
        jacobian = jax.jacfwd(addition(without, bare, place))(x).reshape(16, 16)
        factor = arch.factors(0)[0]
        found[part] = float(np.linalg.norm(jacobian - factor * np.eye(16), 2)) / factor
        x = addition(params, arch, place)(x)
    return found


@pytest.mark.parametrize("name", BLOCKS)
def test_measured_excesses_go_where_the_limits_say(name: str) -> None:
    arch = dataclasses.replace(ARCH, block=name)
    start = _measured(block(name))
    for lever in ("outputs", "inner", "embedding"):
        pulled = _measured(block(name), lever)
        for piece, part in (("values", "attention"), ("feed_forward", "feed_forward")):
            first = lever == "embedding" and part == "attention"
            expected = effect(arch, piece, "first embedding" if first else lever)
            if expected == "0":
                assert start[part] == pulled[part] == 0
                continue
            assert start[part] > 0.01
            # the stream that the second addition reads moves with the first one's branch, by less than a factor of 6
            low, high = {"-> 0": (0, 6 / FAR), "nothing": (1 / 6, 6)}[expected]
            assert low <= pulled[part] / start[part] <= high, (lever, part, pulled[part] / start[part])


@pytest.mark.parametrize("name", ["post_ln", "deepnorm", "no_norm"])
def test_a_larger_shortcut_factor_makes_the_measured_excess_small(name: str) -> None:
    start, pulled = (_measured(block(name), shortcut=factor) for factor in (1.0, FAR))
    for part, before in start.items():
        assert pulled[part] < 2 * before / FAR
