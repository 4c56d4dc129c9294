"""The gradient that enters a stack from above: the head times softmax minus one-hot, over all pairs of tokens.

An untied head knows nothing of the stream, so the softmax's overlap (`theory.softmax_overlap`) says it all. A tied head
is the embedding table: a token's own row lies in the stream, its logit stands out by b sqrt(d) c (b: standard deviation
of the other logits, c: the row's share of the normed token's amplitude), and the gradient runs along that row. What a
last norm leaves of it, c^2 less, points away from all that the sub-layers have written.
"""

from dataclasses import dataclass

import numpy as np
from numpy.polynomial.hermite_e import hermegauss

from theory.architecture import Architecture
from theory.block import block
from theory.embedding import embedding
from theory.gram import root
from theory.softmax_overlap import probability_of_logit, radial_share, softmax_overlap, softmax_spread
from theory.stream import OwnRow, Stream, diagonal, free, outer, with_diagonal
from theory.token_batch import TokenBatch


@dataclass(frozen=True)
class Upstream:
    """Gradient of what the head reads, z, and of the head. Kernels [n, S, S], shares [n, S].

    kernel: of dL/dz as it is. projected: of what a norm before z leaves of it, divisor aside. mean, rows: b_t and p_t
    of dL/dz_t = b_t z_t + p_t r_t plus a random rest, r_t the token's row of the table over its mean length; of the
    projected one if there is a norm. radial: of dL/dz, d times the share of its variance along z_t, about that mean; 1
    for a random direction. head: square of the head's gradient norm. table: what a tied head adds to the square of the
    table's.
    """

    kernel: np.ndarray
    projected: np.ndarray
    mean: np.ndarray
    rows: np.ndarray
    radial: np.ndarray
    head: float
    table: float


def upstream(arch: Architecture, batch: TokenBatch, z: Stream, row: OwnRow) -> Upstream:
    """Upstream gradient for tokens z as the head reads them; row: what of them is their rows of the table, up to the
    tokens' lengths."""
    d, count, size = arch.d_model, np.float32(batch.size * arch.seq_len), arch.vocab_size
    gain = np.float32(arch.logit_scale**2 * arch.std("embedding" if arch.tied else "head")[0] ** 2)
    overlap = softmax_overlap(z.kernel * (gain * d), size)
    mean = gain * softmax_spread(diagonal(z.kernel) * (gain * d), size)
    normed, absent = block(arch.block).last_norm, np.zeros_like(mean)
    if not normed:
        absent = diagonal(overlap) * (1 - radial_share(diagonal(z.kernel) * (gain * d), size))
    left = free(z.kernel, arch, d) if normed else np.ones_like(z.kernel)
    if not arch.tied:
        error = overlap - np.float32(2 / size) + batch.same_target
        spread = z.kernel * outer(mean)
        kernel, projected = (error * gain + spread) / count**2, error * gain * left / count**2
        radial = _radial(gain * absent / count**2, kernel, d)
        head = arch.logit_scale**2 * d * batch.total(error * z.kernel) / float(count) ** 2
        mean = np.zeros_like(mean) if normed else mean / count
        return Upstream(kernel, projected, mean, np.zeros_like(mean), radial, head, 0.0)
    same, follows = batch.same_input, batch.follows
    length = np.maximum(np.sqrt(diagonal(z.kernel)), np.finfo(np.float32).tiny)
    whole = np.maximum(np.sqrt(row.size + diagonal(row.beside)), np.finfo(np.float32).tiny)
    share, beside = np.sqrt(row.size) / whole, row.beside * outer(length / whole)
    own = share * length
    first, second = _own_probability(share, np.sqrt(gain * d) * length, row.length, size, d)
    rest = (1 - first) / np.float32(size)  # another word's probability
    known = diagonal(follows)  # the target is the token itself
    excess = first - known
    amount = with_diagonal(outer(excess), second - 2 * known * first + known)
    both = same * amount
    off = (1 - same) * excess[:, :, None] * (rest[:, None, :] - follows)
    others = with_diagonal(outer(1 - first), 1 - 2 * first + second) * overlap
    target = first[:, :, None] * follows + rest[:, :, None] * (1 - follows)
    crossed = (1 - same) * first[:, :, None] * rest[:, None, :]
    probabilities = same * with_diagonal(outer(first), second) + others + crossed + crossed.mT
    error = probabilities - target - target.mT + batch.same_target
    plain, lost = error - both - off - off.mT, own**2
    by_rows, apart = z.kernel - beside, row.apart * outer((length / whole).astype(np.float64) ** 2)
    elsewhere, slope = _probability_elsewhere(own, length, row.length, by_rows, apart, float(gain * d), size, d)
    elsewhere = elsewhere * (1 - first)[:, None, :]
    together = gain * d * beside * ((1 - own**2) * (first - second))[:, :, None] * (slope * (1 - first))[:, None, :]
    met = (1 - same) * (excess[:, :, None] * (elsewhere - rest[:, None, :]) + together)
    off, error = off + met, error + met + met.mT
    kept = off * (1 - lost[:, :, None])
    factor = root(plain * left + kept + kept.mT + amount * (same * outer(1 - lost) + outer(own) * beside))
    projected = factor @ factor.mT
    scale = gain / count**2
    mean, rows = mean * (1 - first), excess * np.sqrt(gain)
    spread = z.kernel * outer(mean)
    at_words = same * first[:, :, None] + (1 - same) * elsewhere.mT - follows.mT
    table = arch.logit_scale**2 * d * batch.total(error * z.kernel) / float(count) ** 2
    table += _meeting(arch, batch, outer(own) * same + beside, own, excess, both, at_words)
    along = -own * rows if normed else mean
    kernel = error * scale + spread / count**2
    radial = _radial(scale * absent * (1 - 2 * first + second), kernel, d)
    return Upstream(kernel, projected * scale, along / count, rows / count, radial, 0.0, table)


def _radial(absent: np.ndarray, kernel: np.ndarray, d: int) -> np.ndarray:
    """d times the share along z_t of a gradient's variance, which is 1 of a random one, less what is absent there.

    Tokens that are sure of their target have no gradient but roundings.
    """
    size = diagonal(kernel)
    return np.clip(1 - absent / np.maximum(size, np.finfo(np.float32).eps * size.max()), 0, d)


_SHARPEST = 50.0
"""standard deviation of logits above which all that counts is which one is the largest"""


def _own_probability(
    own: np.ndarray, std: np.ndarray, row: np.ndarray, vocab_size: int, d: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean square of a token's probability of itself; own: its row's share c of z's length, std: b.

    Its logit is b sqrt(d) c times the row's relative length. It fluctuates with g, what the rest of z happens to have
    along the row, which makes z longer too: (c + g) / sqrt(1 + 2 c g) stands for c, g of variance (1 - c^2) / d.
    """
    nodes, weights = hermegauss(15)
    weights = weights / weights.sum()
    std = np.minimum(std, _SHARPEST)
    grid, first, second = probability_of_logit(float(f"{np.mean(std**2, dtype=np.float64):.3g}"), vocab_size)
    b, c = std[..., None].astype(np.float64), own[..., None].astype(np.float64)
    g = np.sqrt(np.maximum(1 - c**2, 0) / d) * nodes
    logit = b * np.sqrt(d) * row[..., None] * (c + g) / np.sqrt(np.maximum(1 + 2 * c * g, 0.1))
    mean, square = (np.interp(logit, grid, moment, moment[0], 1.0) @ weights for moment in (first, second))
    return mean.astype(np.float32), square.astype(np.float32)


def _probability_elsewhere(
    own: np.ndarray,
    length: np.ndarray,
    row: np.ndarray,
    met: np.ndarray,
    apart: np.ndarray,
    variance: float,
    vocab_size: int,
    d: int,
) -> tuple[np.ndarray, np.float32]:
    """Mean probability that token t' gives the word which t is, had t' no row of its own, [n, S, S], by their product;
    and its mean slope in the logit.

    met: z_t . z_t' / d by their rows, c_t c_t' r_t . r_t' + c_t r_t . n_t' + c_t' n_t . r_t', of which the first two
    are c_t times what t' has along t's row, and so its logit; and something else of variance `apart` / d. variance: of
    a logit of a token of unit length. own: c. row: the row's length over its mean.
    """
    own, other, longer = own[:, :, None], own[:, None, :], length[:, None, :]
    size = (own * longer) ** 2 + other**2 * np.maximum(length[:, :, None] ** 2 - own**2, 0) + apart + 1e-10
    logit = np.float32(np.sqrt(variance * d)) * row[:, :, None] * own * longer**2 / size * met
    unknown = 1 - np.mean((own * longer) ** 2 / size)
    nodes, weights = hermegauss(15)
    spread = min(float(variance) * float(np.mean(length**2)), _SHARPEST**2)
    weights = weights / weights.sum()
    grid, first, second = probability_of_logit(float(f"{spread:.3g}"), vocab_size)
    means = np.interp(grid[:, None] + np.sqrt(spread * unknown) * nodes, grid, first, first[0], 1.0) @ weights
    slope = np.interp(np.sqrt(spread) * nodes, grid, first - second) @ weights
    return np.interp(logit, grid, means).astype(np.float32), np.float32(slope)


def _meeting(
    arch: Architecture,
    batch: TokenBatch,
    agreement: np.ndarray,
    own: np.ndarray,
    excess: np.ndarray,
    both: np.ndarray,
    errors: np.ndarray,
) -> float:
    """What the table's two gradients have in common, twice; less what an embedding norm takes off the one from below.

    agreement: z_t . z_t' / d. errors: dL/d(logit) of token t for the word that t' is, [n, S, S].
    """
    method = embedding(arch.embedding)
    share, count = arch.evaluate(method.gradient_share), float(batch.size * arch.seq_len)
    scale = arch.logit_scale**2 * arch.d_model / count**2
    lost = own**2 if block(arch.block).last_norm else np.zeros_like(own)  # by a last norm, of the row
    returned = own[:, :, None] * errors.mT  # z_t . dL/dz_t' / d, which has e_t'(w_t) along the row of t
    if block(arch.block).last_norm:
        returned = returned - (excess * own)[:, None, :] * agreement
    taken = 0.0
    if method.layer_norm:
        returned = returned - own[:, :, None] * (excess * (1 - lost))[:, None, :] * batch.same_input
        taken = share**2 * batch.total(both * outer(own * (1 - lost)))
    return scale * (2 * share * batch.total(errors * own[:, None, :] * returned) - taken)
