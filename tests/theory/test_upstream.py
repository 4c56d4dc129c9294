"""The gradient that enters from the head, against draws of heads, tables and streams."""

import numpy as np
import pytest
import sympy as sp

from theory import Architecture, Initialization
from theory.embedding import Embedding
from theory.stream import OwnRow, Stream
from theory.token_batch import TokenBatch
from theory.upstream import upstream

D, WORDS, DRAWS = 64, 40, 4000
INPUTS, TARGETS = np.array([3, 7, 3, 9]), np.array([7, 3, 5, 9])  # a repeat, targets seen before, a target of its own


def drawn(tied, own, logit_std, common=0.3, length=1.0):
    """Mean kernels per coordinate of dL/dz and of what RMSNorm's projector leaves, square of the head's gradient, how
    far dL/dz runs along z, and what is left of it along what z has beside the row.

    z has mean square 1: `own` of the token's row, the rest Gaussian with that correlation between tokens.
    """
    rng = np.random.default_rng(0)
    kernel, projected, head, along, beside = np.zeros((4, 4)), np.zeros((4, 4)), 0.0, np.zeros(4), np.zeros(4)
    covariance = common + (1 - common) * np.eye(4)
    for _ in range(DRAWS):
        table = rng.standard_normal((WORDS, D))
        rest = np.linalg.cholesky(covariance) @ rng.standard_normal((4, D))
        z, other = own * table[INPUTS] + np.sqrt(1 - own**2) * rest, np.sqrt(1 - own**2) * rest
        scale = length / np.sqrt((z**2).mean(axis=1, keepdims=True))
        z, other = z * scale, other * scale
        weights = (table if tied else rng.standard_normal((WORDS, D))) * logit_std / np.sqrt(D)
        logits = z @ weights.T
        error = np.exp(logits - logits.max(axis=1, keepdims=True))
        error /= error.sum(axis=1, keepdims=True)
        error[np.arange(4), TARGETS] -= 1
        gradient = error @ weights / 4
        left = gradient - z * (z * gradient).sum(axis=1, keepdims=True) / D / length**2
        kernel += gradient @ gradient.T / D / DRAWS
        projected += left @ left.T / D / DRAWS
        head += (((error.T @ z) / 4) ** 2).sum() / DRAWS
        along += (z * gradient).sum(axis=1) / D / DRAWS
        beside += (other * left).sum(axis=1) / (other**2).sum(axis=1) / DRAWS
    return kernel, projected, head, along, beside


def predicted(tied, own, logit_std, common=0.3, length=1.0, block="pre_ln"):
    scheme = Initialization("test", default=logit_std / np.sqrt(D), std={}, source="test")
    arch = Architecture(
        num_layers=1, d_model=D, num_heads=1, vocab_size=WORDS, seq_len=4, tied=tied, norm="rms_norm",
        norm_epsilon=0.0, initialization=scheme, block=block,
    )  # fmt: skip
    same, agree = INPUTS[:, None] == INPUTS, TARGETS[:, None] == TARGETS
    three = (x[None].astype(np.float32) for x in (same, agree, INPUTS[:, None] == TARGETS))
    batch = TokenBatch(1, *three, weight=np.ones((1, 1)))
    beside = (1 - own**2) * (common + (1 - common) * np.eye(4))
    kernel = own**2 * same + beside
    alone = np.zeros((1, 4, 4), np.float32)
    row = OwnRow(
        np.full((1, 4), own**2, np.float32), beside[None].astype(np.float32), alone, np.ones((1, 4), np.float32)
    )
    z = Stream(np.zeros((1, 4, 1), np.float32), (length**2 * kernel[None]).astype(np.float32))
    return upstream(arch, batch, z, row)


@pytest.mark.parametrize("logit_std", [0.2, 1.0])
@pytest.mark.parametrize(("tied", "own"), [(False, 0.0), (True, 0.0), (True, 0.15), (True, 0.6), (True, 0.98)])
def test_kernels_are_those_of_drawn_heads(tied, own, logit_std):
    """Within 8 % of the largest: 4000 draws leave 1 %, the rest is of order 1 / sqrt(d) and 1 / V."""
    above, (*kernels, _, _, beside) = predicted(tied, own, logit_std), drawn(tied, own, logit_std)
    for got, expected in zip((above.kernel[0], above.projected[0]), kernels, strict=True):
        largest = np.diag(expected).max()
        np.testing.assert_allclose(np.diag(got) / largest, np.diag(expected) / largest, atol=0.08)
    np.testing.assert_allclose(above.projected[0] / largest, expected / largest, atol=0.08)
    np.testing.assert_allclose(above.mean[0], beside, atol=0.05 * logit_std / np.sqrt(D))


@pytest.mark.parametrize("own", [0.05, 0.3])
def test_a_tied_head_on_tokens_that_no_norm_has_scaled(own):
    """Longer tokens are as sharper heads: of length 6 under the same table, the gradients of logits of that size."""
    found, expected = predicted(True, own, 1.0, length=6.0).kernel[0], drawn(True, own, 1.0, length=6.0)[0]
    np.testing.assert_allclose(np.diag(found), np.diag(expected), rtol=0.15)


@pytest.mark.parametrize("logit_std", [0.2, 1.0])
def test_an_untied_heads_gradient_is_that_of_drawn_ones(logit_std):
    above = predicted(False, 0.0, logit_std, block="no_norm")
    _, _, head, mean, _ = drawn(False, 0.0, logit_std)
    np.testing.assert_allclose(above.head, head, rtol=0.05)
    np.testing.assert_allclose(above.mean.mean(), mean.mean(), rtol=0.05)  # the same for every token
    assert above.table == 0 and not above.rows.any()


@pytest.mark.parametrize("block", ["pre_ln", "no_norm"])
@pytest.mark.parametrize("own", [0.3, 0.98])
def test_a_tied_tables_gradient_from_above_meets_the_one_from_below(own, block):
    """Without a last norm the row itself returns; with one, only what is left of it beside the token."""
    rng, head, meeting = np.random.default_rng(0), 0.0, 0.0
    for _ in range(DRAWS):
        table = rng.standard_normal((WORDS, D))
        z = own * table[INPUTS] + np.sqrt(1 - own**2) * rng.standard_normal((4, D))
        scale = 1 / np.sqrt((z**2).mean(axis=1, keepdims=True)) if block == "pre_ln" else 1.0
        z = z * scale
        error = np.exp(z @ table.T / np.sqrt(D))
        error /= error.sum(axis=1, keepdims=True)
        error[np.arange(4), TARGETS] -= 1
        gradient = error @ table / 4
        if block == "pre_ln":
            gradient -= z * (z * gradient).sum(axis=1, keepdims=True) / D
        above, below = error.T @ z / 4, np.zeros((WORDS, D))
        np.add.at(below, INPUTS, own * np.sqrt(D) * gradient * scale)  # per unit of weights, which are table / sqrt(d)
        head += (above**2).sum() / DRAWS
        meeting += 2 * (above * below).sum() / np.sqrt(D) / DRAWS
    found = predicted(True, own, 1.0, common=0.0, block=block).table
    np.testing.assert_allclose(found, head + meeting, rtol=0.05)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("own", [0.2, 0.6])
def test_a_tied_heads_gradient_counts_words_that_are_likelier_where_tokens_are_alike(own, parts):
    """Two sequences of 8 words, all different and none of them a target.

    What a token has of another's row makes that word likelier, and the two tokens' errors add up along what they have
    in common: 38 to 95 % of what pairs add to the head's gradient. 4000 draws leave 2.5 and 0.7 %, 1 / d is left out.

    parts: of what tokens have beside their rows, whose products with each other the theory is not told.
    """
    rng, networks, count = np.random.default_rng(0), 4000, 16
    table = rng.standard_normal((networks, WORDS, D))
    rows, inputs, targets = own * table[:, :count], np.arange(count), np.arange(count) + count
    rests = np.sqrt((1 - own**2) / parts) * rng.standard_normal((parts, networks, count, D))
    x = rows + rests.sum(axis=0)
    whole = np.sqrt((x**2).mean(axis=-1, keepdims=True))
    weights = table / np.sqrt(D)
    logits = x / whole @ weights.mT
    error = np.exp(logits)
    error /= error.sum(axis=-1, keepdims=True)
    error[:, inputs, targets] -= 1
    first, second = (error[:, part].mT @ (x / whole)[:, part] / 8 for part in (slice(8), slice(8, None)))
    drawn = 2 * (first * second).sum(axis=(1, 2)).mean()

    kernels = [rest @ rest.mT / D for rest in rests]
    size, apart = (rows**2).mean(axis=-1), np.zeros_like(kernels[0])
    if parts == 2:
        one, two = (np.einsum("ntt->nt", kernel) for kernel in kernels)
        apart = one[:, :, None] * two[:, None, :] + two[:, :, None] * one[:, None, :]
    scheme = Initialization("test", default=1 / np.sqrt(D), std={}, source="test")
    detached = Embedding("nothing returns", gradient_share=sp.Rational(1, 10**9), source="test")
    arch = Architecture(
        num_layers=1, d_model=D, num_heads=1, vocab_size=WORDS, seq_len=8, tied=True, norm="rms_norm",
        norm_epsilon=0.0, initialization=scheme, embedding=detached,
    )  # fmt: skip
    eye = np.broadcast_to(np.eye(count), kernels[0].shape)
    batch = TokenBatch(1, *(each.astype(np.float32) for each in (eye, eye, 0 * eye)), weight=1 - np.eye(2))
    row = OwnRow(*(each.astype(np.float32) for each in (size, sum(kernels), apart, np.sqrt(size) / own)))
    z = (x / whole / np.sqrt(D)).astype(np.float32)
    z = np.concatenate([np.zeros_like(z[..., :1]), z], axis=-1)
    np.testing.assert_allclose(upstream(arch, batch, Stream(z, z @ z.mT), row).table, drawn, rtol=0.08)
