"""Random Gram matrices: what the weights of one finite network make of a kernel over its tokens.

Rows u_t = W^T h_t of Gaussian weights with d columns have the Gram matrix of a Wishart draw with d degrees, whatever
else the network is; a residual stream's is a Markov chain of such draws (Li, Nica and Roy, arXiv 2206.02768, who
take its limit of shaped activations and proportional depth; here it is drawn at its true width).
"""

import numpy as np


def root(kernel: np.ndarray) -> np.ndarray:
    """Z with Z Z^T = kernel, [..., T, T]; of what rounding or averaging has left not quite positive, the nearest."""
    scale = np.trace(kernel, axis1=-2, axis2=-1)[..., None, None] * np.finfo(kernel.dtype).eps
    try:
        return np.linalg.cholesky(kernel + scale * np.eye(kernel.shape[-1], dtype=kernel.dtype))
    except np.linalg.LinAlgError:
        if kernel.ndim > 2:
            return np.stack([root(each) for each in kernel])
    values, vectors = np.linalg.eigh(kernel)
    factor = vectors * np.sqrt(np.maximum(values, 0))
    own = np.maximum(np.diag(kernel), 0) / np.maximum((factor**2).sum(axis=-1), np.finfo(kernel.dtype).tiny)
    return factor * np.sqrt(own)[:, None]


def wishart_root(rng: np.random.Generator, count: int, size: int, degrees: int) -> np.ndarray:
    """B float32[count, size, min(size, degrees)]: B B^T is Wishart of that many degrees, mean the identity."""
    scale = np.float32(1 / np.sqrt(degrees))
    if degrees <= size:
        return rng.standard_normal((count, size, degrees), dtype=np.float32) * scale
    factor = np.tril(rng.standard_normal((count, size, size), dtype=np.float32), -1)
    diagonal = np.arange(size)
    factor[..., diagonal, diagonal] = np.sqrt(rng.chisquare(degrees - diagonal, (count, size)))
    return factor * scale


def random_rows(rng: np.random.Generator, rows: np.ndarray, d_model: int, span: int) -> tuple[np.ndarray, np.ndarray]:
    """h_t W for rows h [n, T, k] and a Gaussian W of d_model columns, seen from a frame of `span` <= d_model axes.

    Returns their coordinates along the frame [n, T, span] and a root of what their Gram matrix has beside it
    [n, T, k or 0], both so scaled that the two Gram matrices add up to h h^T on average.

    The second half of the networks has the first half's draws with the other sign along the frame, so that all odd
    orders cancel.
    """
    n, _, inner = rows.shape
    outside = d_model - span
    weights = rng.standard_normal((n // 2, inner, span), dtype=np.float32) * np.float32(d_model**-0.5)
    along, beside = rows @ np.concatenate([weights, -weights]), rows[..., :0]
    if outside:
        shape = wishart_root(rng, n // 2, inner, outside) * np.float32((outside / d_model) ** 0.5)
        beside = rows @ mirrored(shape)
    return along, beside


def mirrored(draws: np.ndarray) -> np.ndarray:
    """The same draws for both halves of the networks."""
    return np.concatenate([draws, draws])
