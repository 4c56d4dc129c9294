"""Attention's moments against brute force: the same expectations with explicit softmax Jacobians and rotations."""

from dataclasses import replace

import numpy as np
import pytest

from theory.gram import Draws
from theory.positions import rope_angles
from theory.random_attention import Heads, Variant, causal_softmax, flat, uniform_attention

DRAWS, SEQ_LEN, HEADS = 4000, 4, 2


def draws():
    return Draws.of(np.random.SeedSequence(1))


def made_up(d_head, group, rope):
    """Heads of two sequences that DRAWS networks share, and a root of their gradients' kernel."""
    rng = np.random.default_rng(0)
    queries, keys, values = rng.standard_normal((3, HEADS, 2, SEQ_LEN, d_head), dtype=np.float32) * d_head**-0.5
    if group > 1:
        keys[:], values[:] = keys[0], values[0]
    heads = Heads(*(np.broadcast_to(x, (DRAWS, *x.shape)) for x in (queries, keys, values)), Variant(rope=rope))
    gradients = rng.standard_normal((2 * SEQ_LEN, 3), dtype=np.float32)
    return heads, np.broadcast_to(gradients, (DRAWS, *gradients.shape))


def jacobians(attention):
    """dA/dscores of row t of sequence s, over the tokens of both sequences: [S, S, S]."""
    total = np.zeros((2 * SEQ_LEN,) * 3)
    for s in range(2):
        own = slice(s * SEQ_LEN, (s + 1) * SEQ_LEN)
        for t, row in enumerate(attention[s]):
            total[s * SEQ_LEN + t, own, own] = np.diag(row) - np.outer(row, row)
    return total


def turned_back(rows, position, rope):
    """R_position^T rows, with the rotation as an explicit matrix of its angles."""
    if not rope:
        return rows
    half = rows.shape[-1] // 2
    angles = rope_angles(SEQ_LEN, 2 * half)[position % SEQ_LEN]
    cos, sin = np.diag(np.cos(angles)), np.diag(np.sin(angles))
    return rows @ np.block([[cos, -sin], [sin, cos]])


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("group", [1, HEADS])
@pytest.mark.parametrize("d_head", [2, 8])
def test_score_gradients_have_the_kernels_of_explicit_softmax_jacobians(d_head, group, rope):
    heads, gradients = made_up(d_head, group, rope)
    attention, g = heads.weights().attention, gradients[0] @ gradients[0].T
    tokens = range(2 * SEQ_LEN)
    at_queries, at_keys = np.zeros((2, 2 * SEQ_LEN, 2 * SEQ_LEN))
    for h in range(HEADS):
        j = jacobians(attention[0, h])
        q, k, v = (x[0, h].reshape(-1, d_head).astype(float) for x in (heads.queries, heads.keys, heads.values))
        c = v @ v.T
        for t in tokens:
            for s in tokens:
                between = j[t] @ c @ j[s] * g[t, s]  # E of dscores_t dscores_s^T
                at_queries[t, s] += np.trace(turned_back(k, t, rope).T @ between @ turned_back(k, s, rope))
                moved = q[t] @ q[s]  # both sequences' keys, each turned back by its own position
                if rope:
                    turned = [[turned_back(q[t], a, rope) @ turned_back(q[s], b, rope) for b in tokens] for a in tokens]
                    moved = np.array(turned)
                at_keys += between * moved
    nothing = np.zeros((DRAWS, 2 * SEQ_LEN), np.float32)
    drawn = heads.score_gradients(draws(), heads.weights(), gradients, nothing, HEADS)
    for got, expected in zip(drawn, (at_queries / HEADS, at_keys / HEADS), strict=True):
        size = np.abs(expected).max()
        np.testing.assert_allclose(got.mean(axis=0), expected, rtol=0.03, atol=0.05 * size)


@pytest.mark.parametrize("lost", [0.3, 1.0])
def test_what_gradients_lack_along_the_outputs_is_missing_from_the_scores(lost):
    """dL/do isotropic but for its share along o: E dq dq^T from that covariance, over all heads at once."""
    d_head = 4
    heads, _ = made_up(d_head, 1, False)
    attention, d = heads.weights().attention, HEADS * d_head
    outputs = flat(attention @ heads.values)[0].astype(float)
    shares = np.full((DRAWS, 2 * SEQ_LEN), lost, np.float32)
    gradients = np.broadcast_to(np.eye(2 * SEQ_LEN, dtype=np.float32), (DRAWS, 2 * SEQ_LEN, 2 * SEQ_LEN))
    got, _ = heads.score_gradients(draws(), heads.weights(), gradients, shares, HEADS)
    for t in range(2 * SEQ_LEN):
        unit = outputs[t] / np.linalg.norm(outputs[t])
        covariance = np.eye(d) - lost * np.outer(unit, unit)
        expected = 0.0
        for h in range(HEADS):
            k, v = (x[0, h].reshape(-1, d_head).astype(float) for x in (heads.keys, heads.values))
            m = k.T @ jacobians(attention[0, h])[t] @ v
            own = slice(h * d_head, (h + 1) * d_head)
            expected += np.trace(m @ covariance[own, own] @ m.T) / HEADS
        np.testing.assert_allclose(got[:, t, t].mean(), expected, rtol=0.1, atol=1e-9)


def test_some_heads_lack_what_all_would():
    """Two heads that stand for four equal pairs lose a quarter of what they lose where they are all."""
    heads, gradients = made_up(4, 1, False)
    few = replace(heads, **{name: getattr(heads, name)[:, :1] for name in ("queries", "keys", "values")})
    nothing = np.zeros((DRAWS, 2 * SEQ_LEN), np.float32)
    sizes = []
    for num_heads, lost in ((1, 0), (1, 1), (4, 1)):
        got, _ = few.score_gradients(draws(), few.weights(), gradients, nothing + lost, num_heads)
        sizes.append(np.einsum("nss->s", got)[[2, 3, 6, 7]])
    np.testing.assert_allclose(sizes[0] - sizes[2], (sizes[0] - sizes[1]) / 4, rtol=0.05)


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("group", [1, 3])
def test_logits_have_the_variance_of_queries_times_keys(group, rope):
    """Var(q.k / sqrt(d_head)) = query variance x key variance, and a mirror image has the opposite."""
    tokens = np.broadcast_to(np.eye(3, dtype=np.float32), (DRAWS, 3, 3))
    heads = Heads.draw(draws(), tokens, 1, (2, group, 16), (0.5, 3.0, 1.0), Variant(rope=rope))
    assert heads.queries.shape == heads.keys.shape == heads.values.shape == (DRAWS, 2 * group, 1, 3, 16)
    logits = np.sqrt(16) * heads.queries @ heads.keys.mT
    np.testing.assert_allclose(logits[: DRAWS // 2], -logits[DRAWS // 2 :], rtol=1e-6)
    assert abs(logits.var() / 1.5 - 1) < 0.05
    assert abs(np.sum(heads.values[..., 0, :] ** 2, axis=-1).mean() - 1) < 0.05
    assert (heads.keys[:, 0] == heads.keys[:, group - 1]).all() and (heads.keys[:, 0] != heads.keys[:, group]).any()
    assert (heads.values[:, 0] == heads.values[:, group - 1]).all()
    np.testing.assert_allclose(heads.weights().attention, causal_softmax(logits), rtol=1e-4)
    np.testing.assert_allclose(np.triu(heads.weights().attention, 1), 0)


def test_small_logits_give_uniform_and_large_ones_sharp_attention():
    tokens = np.broadcast_to(np.eye(8, dtype=np.float32), (64, 8, 8))
    source = draws()
    nearly = Heads.draw(source, tokens, 1, (1, 1, 64), (1e-6, 1e-6, 1.0), Variant()).weights().attention
    np.testing.assert_allclose(nearly[0, 0, 0], uniform_attention(8), atol=1e-4)
    sharp = Heads.draw(source, tokens, 1, (1, 1, 64), (30.0, 30.0, 1.0), Variant()).weights().attention
    assert np.median(sharp[..., -1, :].max(axis=-1)) > 0.9
