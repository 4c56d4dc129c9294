"""Position codes that are fixed numbers, shared by the prediction and the model."""

import numpy as np

BASE = 10_000.0


def sinusoids(seq_len: int, d_model: int) -> np.ndarray:
    """Sinusoidal positions float64[seq_len, d_model], sines then cosines (Vaswani et al., arXiv 1706.03762, 3.5)."""
    angles = np.arange(seq_len)[:, None] * BASE ** (-np.arange(0, d_model, 2) / d_model)[None, :]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def rope_angles(seq_len: int, d_head: int) -> np.ndarray:
    """RoPE's angles float64[seq_len, d_head / 2] (Su et al., arXiv 2104.09864).

    Coordinates i and i + d_head / 2 turn by position x base^(-2i / d_head).
    """
    return np.arange(seq_len)[:, None] * BASE ** (-np.arange(d_head // 2) * 2 / d_head)[None, :]


def alibi_slopes(num_heads: int) -> np.ndarray:
    """ALiBi's slopes float64[num_heads] (Press et al., arXiv 2108.12409): logits get -slope x distance.

    2^(-8 i / h) for i = 1..h where h is a power of two; else those of the next lower power, then every second one of
    the next higher, as in the authors' code.
    """
    lower = 2 ** int(np.log2(num_heads))
    slopes = 2.0 ** (-8 * np.arange(1, lower + 1) / lower)
    between = 2.0 ** (-8 * np.arange(1, 2 * lower + 1, 2) / (2 * lower))
    return np.concatenate([slopes, between])[:num_heads]
