"""Predictions for sequences too long to follow token by token: from short ones, by how evenly attention spreads.

Cut into shorter sequences, a batch of the same tokens differs in one thing: how many tokens attention averages over.
What that does to a second moment is smooth in the participation p, the mean over positions of E sum_s A_ts^2: 1 for a
token that sees itself alone, H_T / T for even attention, of which a second layer makes (log T)^2 / T. So every square
is fitted as c_0 + c_1 p + c_2 p log p at short lengths, by its relative errors, and read off at the long one's p, which
is nearer to 0.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from theory.softmax_overlap import softmax_overlap

FOLLOWED = 256
"""the longest sequence that is followed token by token"""
_LENGTHS = (32, 64, 128, FOLLOWED)


@lru_cache(maxsize=256)
def participation(variance: float, seq_len: int) -> float:
    """Mean over positions t of E sum_s A_ts^2, A_t the softmax of t independent Gaussian logits of that variance."""
    positions = np.unique(np.geomspace(1, seq_len, 40).round())
    logits = np.full((1, 1), max(float(variance), 1e-9))
    at = [float(softmax_overlap(logits, int(t))[0, 0]) for t in positions]
    every = np.arange(1, seq_len + 1)
    return float(np.exp(np.interp(np.log(every), np.log(positions), np.log(at))).mean())


def extrapolate(
    squares: Callable[[int], dict[str, np.ndarray]], variance: float, seq_len: int
) -> dict[str, np.ndarray]:
    """Squares at `seq_len` from those of a batch of as many tokens at shorter lengths.

    squares: of the length. variance: of the attention logits. From the longest one followed on, nothing falls faster
    than p.
    """
    followed = [squares(length) for length in _LENGTHS]
    p = np.array([participation(variance, length) for length in (*_LENGTHS, seq_len)])
    terms = np.column_stack([np.ones_like(p), p, p * np.log(p)])
    found = {}
    for name in followed[0]:
        y = np.array([each[name] for each in followed])
        found[name] = np.array([_at_last(terms, square) if square.all() else 0.0 for square in y.T])
        found[name] = np.maximum(found[name], y[-1] * p[-1] / p[-2])
    return found


def _at_last(terms: np.ndarray, y: np.ndarray) -> float:
    """Of a combination of the columns whose relative errors about y, one row short of all, have the least squares."""
    return float(terms[-1] @ np.linalg.lstsq(terms[:-1] / y[:, None], np.ones_like(y))[0])
