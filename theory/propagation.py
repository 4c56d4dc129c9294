"""Second moments of a residual stack at initialisation, in absolute terms, at the model's true width.

Two kernels over the tokens go through the stack: K[t,t'] = x_t . x_t' / d forward and G[t,t'], the covariance of dL/dx
per coordinate, backward. Forward, a small ensemble of networks is followed, each by the Gram matrix that its own
weights make (`theory.gram`), so that what depends on one network's token lengths and correlations, which compound
with depth, is averaged where it acts. Attention is drawn from its own distribution (`theory.random_attention`), an
activation acts by its dual (`theory.dual_activation`) and by hidden units that are drawn, and the upstream gradient has
the true kernel of softmax minus one-hot.

A network of the ensemble sees two sequences of the batch, or the only one; what they have within and between them
stands for the batch's sequences and pairs. All kernels are float32[n, S, S]: n networks, S = its sequences' tokens.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from theory.architecture import Architecture
from theory.attention_scheme import attention_scheme
from theory.block import PARTS, block
from theory.gram import Draws
from theory.long_sequence import FOLLOWED, extrapolate
from theory.stack import group_squares
from theory.token_batch import TokenBatch, representative_pairs


@dataclass(frozen=True)
class Prediction:
    """Root of the expected square over initialisations, and over random tokens where no tokens were given.

    shortcut_std: float64[S + 1], standard deviation of the residual stream over batch, position and coordinate.
    gradient_norm: float64[S + 1], Frobenius norm of dL/dx at each place, L in nats per token. amplification:
    gradient_norm[0] / gradient_norm[-1]. parameter_gradient_norm: Frobenius norm of dL/dW by matrix kind,
    float64[num_layers], for embedding and head float64[1]. branch_rms: root mean square of the output of "attention"
    and "feed_forward", before any norm or factor on it, float64[num_layers].
    """

    shortcut_std: np.ndarray
    gradient_norm: np.ndarray
    amplification: float
    parameter_gradient_norm: dict[str, np.ndarray]
    branch_rms: dict[str, np.ndarray]


def predict(
    arch: Architecture, batch_size: int = 8, tokens: np.ndarray | None = None, networks: int | None = None
) -> Prediction:
    """Predict `arch` at initialisation for a batch; a pure function of its arguments.

    tokens: int[batch, seq_len + 1], which then also give the batch size; None: `batch_size` sequences of independent
    uniform tokens. networks: size of the ensemble, at least 2; the numbers' own sampling error falls as one over its
    root. None: enough for 1 to 2 % in the norms in seconds (gradients of query and key: 7 %, of the widest 20 %), or
    for what a minute gives where networks differ much. Sequences of more than 256 tokens are read off from shorter ones
    (`theory.long_sequence`), some per cent less near. Source: arXiv 2312.16903 made exact to second moments; the chain
    of Gram matrices of arXiv 2206.02768. Raises ValueError for tokens that do not fit, a batch size or a number of
    networks below 1, where float32 overflows, and where a norm of epsilon 0 meets nothing but zeros.
    """
    for name, value in (("batch_size", batch_size), ("networks", networks)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: must be at least 1, got {value}")
    if tokens is not None:
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or tokens.shape[1] != arch.seq_len + 1 or not len(tokens):
            raise ValueError(f"tokens: expected shape (batch, {arch.seq_len + 1}), got {tokens.shape}")
        if not np.issubdtype(tokens.dtype, np.integer) or tokens.min() < 0 or tokens.max() >= arch.vocab_size:
            raise ValueError(f"tokens: expected whole numbers in 0..{arch.vocab_size - 1} (vocab_size - 1)")
        batch_size = len(tokens)
    if arch.seq_len > FOLLOWED:
        at_length = partial(_squares_at, arch, batch_size, tokens, networks)
        squares = extrapolate(at_length, logit_variance(arch), arch.seq_len)
    else:
        squares = _mean_squares(arch, batch_size, tokens, networks)
    roots = {name: np.sqrt(np.maximum(square, 0.0)) for name, square in squares.items()}
    shortcut_std, gradient_norm = roots.pop("shortcut_std"), roots.pop("gradient_norm")
    branch_rms = {part: roots.pop(f"branch/{part}") for part in PARTS}
    return Prediction(shortcut_std, gradient_norm, float(gradient_norm[0] / gradient_norm[-1]), roots, branch_rms)


def _squares_at(
    arch: Architecture, batch_size: int, tokens: np.ndarray | None, networks: int | None, length: int
) -> dict[str, np.ndarray]:
    """As `_mean_squares`, of the batch's tokens in sequences of that length instead."""
    count = max(1, round(batch_size * arch.seq_len / length))
    if tokens is not None:
        starts = np.arange(arch.seq_len // length) * length
        tokens = np.concatenate([tokens[:, start : start + length + 1] for start in starts])
        count = len(tokens)
    squares = _mean_squares(replace(arch, seq_len=length), count, tokens, networks)
    fewer = count * length / (batch_size * arch.seq_len)
    return {
        name: square if name == "shortcut_std" or name.startswith("branch/") else square * fewer
        for name, square in squares.items()
    }


def _mean_squares(
    arch: Architecture, batch_size: int, tokens: np.ndarray | None, networks: int | None
) -> dict[str, np.ndarray]:
    """`group_squares` in the mean over the whole ensemble, which grows up to fourfold where networks differ much."""
    seeds = np.random.SeedSequence(0)
    rng = np.random.default_rng(seeds)
    count = ensemble_size(arch, tokens) if networks is None else networks
    drawn = _ensemble(arch, batch_size, tokens, count, seeds, rng)
    if networks is None:
        first = np.concatenate([pairs for _, pairs in drawn])
        error = np.std(first) / np.mean(first) / max(len(first) - 1, 1) ** 0.5
        times = min((error / (2 * _WELL)) ** 2, _MOST)
        if times > 1:
            drawn += _ensemble(arch, batch_size, tokens, int(np.ceil(count * (times - 1))), seeds, rng)
    sizes = [len(pairs) for _, pairs in drawn]
    return {name: np.average([part[name] for part, _ in drawn], axis=0, weights=sizes) for name in drawn[0][0]}


_WELL, _MOST = 0.02, 4
"""standard error of the gradient's norm at the first place, above which more networks are followed; times as many"""


def _ensemble(
    arch: Architecture,
    batch_size: int,
    tokens: np.ndarray | None,
    networks: int,
    seeds: np.random.SeedSequence,
    rng: np.random.Generator,
) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """`group_squares` of that many networks more, by groups."""
    half = -(-networks // 2)
    chosen = rng.integers(arch.vocab_size, size=(half, min(2, batch_size), arch.seq_len + 1))
    if tokens is not None:
        chosen = representative_pairs(tokens, half, rng)
    largest = max(1, min(len(chosen), int(np.clip(2**16 // arch.seq_len**2, 4, 64))))
    groups = [np.concatenate([group, group]) for group in np.array_split(chosen, -(-len(chosen) // largest))]
    draws = [Draws.of(seed) for seed in seeds.spawn(len(groups))]

    def squares(group: np.ndarray, draws: Draws) -> tuple[dict[str, np.ndarray], np.ndarray]:
        with np.errstate(over="raise", invalid="raise"):
            try:
                return group_squares(arch, TokenBatch.of(arch, batch_size, group, tokens is None), draws)
            except FloatingPointError as error:
                if "overflow" not in str(error):
                    raise ValueError(
                        f"norm_epsilon: at {arch.norm_epsilon} a norm of this architecture divides zeros by zero; "
                        "choose it positive"
                    ) from None
                raise ValueError(
                    f"num_layers: {arch.num_layers} blocks {block(arch.block).name!r} under {arch.initialization!r} "
                    "explode beyond float32, no norm bounds the stream; choose fewer, or smaller weights"
                ) from None

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(squares, groups, draws))


def logit_variance(arch: Architecture) -> float:
    """Largest over layers, for tokens of unit variance."""
    scheme = attention_scheme(arch.attention)
    if scheme.normed:
        return scheme.temperature_at(arch.d_head) ** 2
    return scheme.temperature_at(arch.d_head) ** 2 * float(
        np.max(arch.d_model**2 * arch.effective_std("attention.query") ** 2 * arch.effective_std("attention.key") ** 2)
    )


def ensemble_size(arch: Architecture, tokens: np.ndarray | None) -> int:
    """Networks to follow: more where given tokens, depth or sharp attention set them apart, fewer of wide ones."""
    sharpness = min(logit_variance(arch), 4.0)
    wanted = (64 if tokens is None else 256) * (1 + sharpness * arch.num_layers / 6)
    wanted *= min(1.0, 1024 / arch.d_model) ** 4
    size = 2 * arch.seq_len
    affordable = 5e10 / (arch.num_layers * size**2 * (size + min(size, arch.d_model)))
    least = 2 if tokens is None else min(2 * len(tokens), 16)
    return int(np.clip(min(max(wanted, affordable / 100), affordable), least, 1024))
