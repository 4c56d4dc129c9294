"""Attention's moments against brute force: the same expectations with explicit softmax Jacobians and rotations."""

import numpy as np
import pytest

from theory.positions import rope_angles
from theory.random_attention import causal_softmax, draw_attention, key_gradients, query_scores, uniform_attention

DRAWS, SEQ_LEN = 4000, 4


def made_up(d_head, same_keys=True, seed=0):
    """Two sequences of one network, whose attention, queries and keys DRAWS networks share, and a token root."""
    rng = np.random.default_rng(seed)
    shape = (1 if same_keys else DRAWS, 2, SEQ_LEN, d_head)
    attention = causal_softmax(rng.standard_normal((1, 2, SEQ_LEN, SEQ_LEN), dtype=np.float32))
    rows = rng.standard_normal(shape, dtype=np.float32) / np.float32(d_head**0.5)
    tokens, gradients = rng.standard_normal((2, 1, 2 * SEQ_LEN, 3), dtype=np.float32)
    return [np.broadcast_to(x, (DRAWS, *x.shape[1:])) for x in (attention, rows, tokens, gradients)]


def jacobians(attention):
    """dA/dscores of row t of sequence s, over the tokens of both sequences: [S, S, S]."""
    total = np.zeros((2 * SEQ_LEN,) * 3)
    for s in range(2):
        own = slice(s * SEQ_LEN, (s + 1) * SEQ_LEN)
        for t, row in enumerate(attention[s]):
            total[s * SEQ_LEN + t, own, own] = np.diag(row) - np.outer(row, row)
    return total


def turned_back(rows, position):
    """R_position^T rows, with the rotation as an explicit matrix of its angles."""
    half = rows.shape[-1] // 2
    cos, sin = (
        np.diag(np.cos(rope_angles(SEQ_LEN, 2 * half)[position])),
        np.diag(np.sin(rope_angles(SEQ_LEN, 2 * half)[position])),
    )
    return rows @ np.block([[cos, -sin], [sin, cos]])


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("d_head", [2, 8])
def test_query_scores_are_traces_over_explicit_softmax_jacobians(d_head, rope):
    attention, keys, tokens, _ = made_up(d_head)
    j, c = jacobians(attention[0]), tokens[0] @ tokens[0].T
    flat_keys, positions = keys[0].reshape(-1, d_head), np.tile(np.arange(SEQ_LEN), 2)
    seen = [turned_back(flat_keys, p) if rope else flat_keys for p in positions]
    expected = np.array([[np.trace(seen[t].T @ j[t] @ c @ j[s] @ seen[s]) for s in range(8)] for t in range(8)])
    drawn = query_scores(np.random.default_rng(1), attention, keys, tokens, rope).mean(axis=0)
    np.testing.assert_allclose(drawn, expected, rtol=0.02, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("d_head", [2, 8])
def test_key_gradients_are_sums_over_explicit_softmax_jacobians(d_head, rope):
    attention, queries, tokens, gradients = made_up(d_head)
    j, c, g = jacobians(attention[0]), tokens[0] @ tokens[0].T, gradients[0] @ gradients[0].T
    flat, positions = queries[0].reshape(-1, d_head), np.tile(np.arange(SEQ_LEN), 2)
    seen = [turned_back(flat, p) if rope else flat for p in positions]
    expected = np.zeros((8, 8))
    for t in range(8):
        for s in range(8):
            overlap = np.array([[seen[a][t] @ seen[b][s] for b in range(8)] for a in range(8)])
            expected += g[t, s] * (j[t] @ c @ j[s]) * overlap
    drawn = key_gradients(np.random.default_rng(1), attention, queries, tokens, gradients, rope).mean(axis=0)
    np.testing.assert_allclose(drawn, expected, rtol=0.02, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize("d_head", [96, 256])
def test_a_wide_head_is_scored_like_its_own_coordinates(d_head):
    """Of a wide head a part of the frequencies is used: the mean over random keys must be the whole head's."""
    attention, keys, tokens, gradients = made_up(d_head, same_keys=False)
    j, c, g = jacobians(attention[0]), tokens[0] @ tokens[0].T, gradients[0] @ gradients[0].T
    angles = rope_angles(SEQ_LEN, d_head)
    positions = np.tile(np.arange(SEQ_LEN), 2)
    # E[k_s . k_s'] = [s = s'] for these keys; turned back by t and t', their overlap is the mean cosine of t - t'
    turn = np.cos(angles[positions][:, None] - angles[positions][None]).mean(axis=-1)
    expected = np.array([[np.trace(j[t] @ c @ j[s]) for s in range(8)] for t in range(8)]) * turn
    drawn = query_scores(np.random.default_rng(1), attention, keys, tokens, True).mean(axis=0)
    np.testing.assert_allclose(drawn, expected, rtol=0.03, atol=0.03 * np.abs(expected).max())
    own = sum(g[t, t] * (j[t] @ c @ j[t]) for t in range(8)) * turn
    drawn = key_gradients(np.random.default_rng(1), attention, keys, tokens, gradients, True).mean(axis=0)
    np.testing.assert_allclose(drawn, own, rtol=0.03, atol=0.05 * np.abs(own).max())


@pytest.mark.parametrize("rope", [False, True])
def test_logits_have_the_variance_of_queries_times_keys(rope):
    """Var(q.k / sqrt(d_head)) = query variance x key variance, and the second half of the networks has the opposite."""
    tokens = np.broadcast_to(np.eye(3, dtype=np.float32), (DRAWS, 1, 3, 3))
    attention, query, key = draw_attention(np.random.default_rng(0), tokens, 16, 0.5, 3.0, rope)
    logits = np.sqrt(16) * query @ np.swapaxes(key, -1, -2)
    np.testing.assert_allclose(logits[: DRAWS // 2], -logits[DRAWS // 2 :], rtol=1e-6)
    assert abs(logits[: DRAWS // 2].var() / 1.5 - 1) < 0.05
    np.testing.assert_allclose(attention, causal_softmax(logits), rtol=1e-4)
    np.testing.assert_allclose(np.triu(attention, 1), 0)


def test_small_logits_give_uniform_and_large_ones_sharp_attention():
    tokens = np.broadcast_to(np.eye(8, dtype=np.float32), (64, 1, 8, 8))
    rng = np.random.default_rng(0)
    nearly = draw_attention(rng, tokens, 64, 1e-6, 1e-6, False)[0]
    np.testing.assert_allclose(nearly[0, 0], uniform_attention(8), atol=1e-4)
    sharp = draw_attention(rng, tokens, 64, 30.0, 30.0, False)[0]
    assert np.median(sharp[..., -1, :].max(axis=-1)) > 0.9
