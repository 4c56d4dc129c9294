"""Attention's moments against brute force: the same sums with explicit Jacobians, and plain simulation."""

import numpy as np
import pytest

from theory.random_attention import AttentionDraws, causal_softmax, draw_attention, score_between, uniform_attention


def made_up(seq_len=5, draws=3, seed=0):
    rng = np.random.default_rng(seed)
    matrix = causal_softmax(rng.standard_normal((draws, 1, seq_len, seq_len)))
    grams = [(x := rng.standard_normal((draws, 1, seq_len, 7))) @ np.swapaxes(x, -1, -2) / 7 for _ in range(3)]
    kernel, queries, keys = grams
    return AttentionDraws(matrix, kernel, matrix @ kernel, queries, keys, np.ones((1, 1, 1)))


def jacobians(matrix):
    """J_t = diag(a) - a a^T for every row a of A, [T, T, T]."""
    return np.stack([np.diag(row) - np.outer(row, row) for row in matrix])


def test_query_score_is_the_trace_over_explicit_softmax_jacobians():
    draws = made_up()
    expected = np.zeros((5, 5))
    products = np.zeros((5, 5))
    for a, c, k in zip(draws.matrix[:, 0], draws.kernel[:, 0], draws.keys[:, 0], strict=True):
        j = jacobians(a)
        score = np.array([[np.trace(j[t] @ c @ j[s] @ k) for s in range(5)] for t in range(5)])
        expected += score / 3
        products += score * c / 3
    kernel, product = draws.query_score()
    np.testing.assert_allclose(kernel[0], expected, rtol=1e-6, atol=1e-15)
    np.testing.assert_allclose(product[0], products, rtol=1e-6, atol=1e-15)


def test_key_score_is_the_sum_over_explicit_softmax_jacobians():
    draws = made_up()
    gradient = np.random.default_rng(1).standard_normal((5, 5))
    gradient = gradient @ gradient.T * 1e-12
    expected = np.zeros((5, 5))
    for a, c, q in zip(draws.matrix[:, 0], draws.kernel[:, 0], draws.queries[:, 0], strict=True):
        j = jacobians(a)
        for t in range(5):
            for s in range(5):
                expected += gradient[t, s] * q[t, s] * (j[t] @ c @ j[s]) / 3
    np.testing.assert_allclose(draws.key_score(gradient[None])[0][0], expected, rtol=1e-5, atol=1e-18)


def test_scores_between_sequences_use_each_ones_own_attention():
    rng = np.random.default_rng(2)
    a, b = causal_softmax(rng.standard_normal((2, 4, 4)))
    kernel, gradient = rng.standard_normal((2, 4, 4))
    query, key = score_between(a, b, kernel, gradient, 2.0, 3.0)
    ja, jb = jacobians(a), jacobians(b)
    expected = np.array([[3 * np.trace(ja[t] @ kernel @ jb[s] @ kernel.T) for s in range(4)] for t in range(4)])
    np.testing.assert_allclose(query, expected * gradient, rtol=1e-9)
    expected = sum(gradient[t, s] * 2 * kernel[t, s] * (ja[t] @ kernel @ jb[s]) for t in range(4) for s in range(4))
    np.testing.assert_allclose(key, expected, rtol=1e-9)


def test_forward_and_value_paths():
    draws = made_up()
    expected_kernel = np.eye(5)[None]
    flat = uniform_attention(5)
    pairs = list(zip(draws.matrix[:, 0], draws.kernel[:, 0], strict=True))
    difference = np.mean([a @ c @ a.T - flat @ c @ flat.T for a, c in pairs], axis=0)
    np.testing.assert_allclose(draws.forward(expected_kernel)[0], flat @ flat.T + difference, rtol=1e-6)
    gradient = np.diag([1.0, 2, 3, 4, 5])[None]
    carried, product = draws.value_backward(gradient, draws.kernel.mean(axis=0))
    each = [a.T @ gradient[0] @ a for a in draws.matrix[:, 0]]
    np.testing.assert_allclose(carried[0], np.mean(each, 0), rtol=1e-5)
    np.testing.assert_allclose(
        product[0], np.mean([x * c for x, c in zip(each, draws.kernel[:, 0], strict=True)], 0), rtol=1e-5
    )


@pytest.mark.parametrize("degrees", [6.0, 400.0])
def test_drawn_kernels_have_the_wishart_spread(degrees):
    """Off-diagonal correlations vary by (1 - c^2)^2 / degrees; 4,000 draws know that variance to 1 part in 40."""
    kernel = np.full((4, 4), 0.3) + 0.7 * np.eye(4)
    rng = np.random.default_rng(0)
    drawn = draw_attention(rng, np.broadcast_to(kernel, (4000, 1, 4, 4)), degrees, 1, 1e-6, 1e-6, False).kernel
    np.testing.assert_allclose(np.einsum("nrtt->nrt", drawn), 1, rtol=1e-3)
    spread = drawn[:4000, 0, 0, 2].var() * degrees / (1 - 0.3**2) ** 2
    assert 1 - 5 / 40 - 2 / degrees < spread < 1 + 5 / 40 + 2 / degrees


def test_small_logits_give_uniform_and_large_ones_sharp_attention():
    rng = np.random.default_rng(0)
    kernel = np.broadcast_to(np.eye(8), (64, 1, 8, 8))
    nearly = draw_attention(rng, kernel, 1e4, 64, 1e-6, 1e-6, False).mean()[0]
    np.testing.assert_allclose(nearly, uniform_attention(8), atol=1e-4)
    sharp = draw_attention(rng, kernel, 1e4, 64, 30.0, 30.0, False).matrix
    assert np.median(sharp[..., -1, :].max(axis=-1)) > 0.9
