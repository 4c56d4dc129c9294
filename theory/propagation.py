"""Second moments of a pre-LN stack at initialisation, in absolute terms, at the model's true width.

Two kernels over the tokens go through the stack: K[t,t'] = x_t . x_t' / d forward and G[t,t'], the covariance of dL/dx
per coordinate, backward. Forward, a small ensemble of networks is followed, each by the Gram matrix that its own
weights make (`theory.gram`), so that what depends on one network's token lengths and correlations, which compound
with depth, is averaged where it acts. Attention is drawn from its own distribution (`theory.random_attention`), an
activation acts by its dual (`theory.dual_activation`), and the upstream gradient has the true kernel of softmax minus
one-hot.

A network of the ensemble sees two sequences of the batch, or the only one; what they have within and between them
stands for the batch's sequences and pairs. All kernels are float32[n, S, S]: n networks, S = its sequences' tokens.

Of the dependence between a layer's forward weights and the gradient that comes back through it, what the norm makes is
kept: `_radial_share`. The rest is dropped, and so are the gradient's own fluctuations.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from theory.activation import activation
from theory.architecture import BLOCK_MATRICES, Architecture
from theory.dual_activation import dual_activation
from theory.embedding import embedding
from theory.gram import Draws, random_rows, root, wishart_root
from theory.positions import sinusoids
from theory.random_attention import Heads, flat
from theory.softmax_overlap import softmax_overlap


@dataclass(frozen=True)
class Prediction:
    """Root of the expected square over initialisations, and over random tokens where no tokens were given.

    shortcut_std: float64[S + 1], standard deviation of the residual stream over batch, position and coordinate.
    gradient_norm: float64[S + 1], Frobenius norm of dL/dx at each place, L in nats per token. amplification:
    gradient_norm[0] / gradient_norm[-1]. parameter_gradient_norm: Frobenius norm of dL/dW by matrix kind,
    float64[num_layers], for embedding and head float64[1].
    """

    shortcut_std: np.ndarray
    gradient_norm: np.ndarray
    amplification: float
    parameter_gradient_norm: dict[str, np.ndarray]


def predict(
    arch: Architecture, batch_size: int = 8, tokens: np.ndarray | None = None, networks: int | None = None
) -> Prediction:
    """Predict `arch` at initialisation for a batch; a pure function of its arguments.

    tokens: int[batch, seq_len + 1], which then also give the batch size; None: `batch_size` sequences of independent
    uniform tokens. networks: size of the ensemble, at least 2; the numbers' own sampling error falls as one over its
    root. None: enough for 1 to 2 % in the norms in seconds (gradients of query and key: 7 %, of the widest 20 %).
    Source: arXiv 2312.16903 made exact to second moments; the chain of Gram matrices of arXiv 2206.02768. Raises
    ValueError for a tied head, for tokens that do not fit, and for a batch size or a number of networks below 1.
    """
    if arch.tied:
        raise ValueError("tied: predict covers an untied head; got tied=True (bound and measure take both)")
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
    seeds = np.random.SeedSequence(0)
    half = -(-(_enough(arch, tokens) if networks is None else networks) // 2)
    rng = np.random.default_rng(seeds)
    chosen = rng.integers(arch.vocab_size, size=(half, min(2, batch_size), arch.seq_len + 1))
    if tokens is not None:
        chosen = _representative_pairs(tokens, half, rng)
    largest = max(1, min(len(chosen), int(np.clip(2**17 // arch.seq_len**2, 8, 128))))
    groups = [group for group in np.array_split(chosen, -(-len(chosen) // largest)) for _ in range(2)]
    draws = [draws for seed in seeds.spawn(len(groups) // 2) for draws in Draws.pair(seed)]

    def squares(group: np.ndarray, draws: Draws) -> dict[str, np.ndarray]:
        return _squares(arch, _Batch.of(arch, batch_size, group, tokens is None), draws)

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        drawn = list(pool.map(squares, groups, draws))
    sizes = [len(group) for group in groups]
    means = {name: np.average([part[name] for part in drawn], axis=0, weights=sizes) for name in drawn[0]}
    roots = {name: np.sqrt(np.maximum(mean, 0.0)) for name, mean in means.items()}
    shortcut_std, gradient_norm = roots.pop("shortcut_std"), roots.pop("gradient_norm")
    return Prediction(shortcut_std, gradient_norm, float(gradient_norm[0] / gradient_norm[-1]), roots)


def _squares(arch: Architecture, batch: "_Batch", draws: Draws) -> dict[str, np.ndarray]:
    """Every square that a Prediction has the root of, in the mean over one group of networks."""
    stream = _embed(arch, batch, draws)
    variances, sublayers = [stream.observed_variance(arch, batch)], []
    for layer in range(arch.num_layers):
        for part in (_Attention, _FeedForward):
            sublayer, rows = part.forward(arch, layer, stream.norm(arch), batch, draws)
            stream = _add(stream, *random_rows(draws, rows, arch.d_model, stream.coordinates.shape[-1]))
            variances.append(stream.observed_variance(arch, batch))
            sublayers.append(sublayer)
    after = stream.norm(arch)
    gradient, head = _upstream(arch, batch, after)
    radial = np.zeros_like(after.divisor)
    norms = [batch.trace(gradient)]
    squares = {kind: np.zeros(arch.num_layers) for kind in BLOCK_MATRICES}
    for index in reversed(range(len(sublayers))):
        sublayer = sublayers.pop()
        kept = np.minimum((sublayer.norm.divisor / after.divisor) ** 2, 1)
        lost = (1 - radial) * (1 - kept)
        increment, own = sublayer.backward(arch, index // 2, batch, gradient, lost, draws)
        for kind, square in own.items():
            squares[kind][index // 2] = square
        before = gradient + increment * sublayer.norm.jacobian(arch)
        growth = np.einsum("nss->ns", before) / np.einsum("nss->ns", gradient)
        radial, gradient, after = _radial_share(radial, kept, growth), before, sublayer.norm
        norms.append(batch.trace(gradient))
    return squares | {
        "embedding": np.array([_table_gradient(arch, batch, gradient)]),
        "head": np.array([head]),
        "shortcut_std": np.array(variances),
        "gradient_norm": arch.d_model * np.array(norms[::-1]),
    }


def _radial_share(radial: np.ndarray, kept: np.ndarray, growth: np.ndarray) -> np.ndarray:
    """E(g . x)^2 d / (|g|^2 |x|^2) at a place, from `radial`, what it is at the next one; 1 for a random direction.

    At the last place it is 0: the last norm makes the loss blind to the length of x. A sub-layer's x' = x + f, g = g' +
    J^T g' has J^T g' . x = 0 by its own norm, so g . x = g' . x; of x the share `kept` = |x|^2 / |x'|^2 lies along x',
    where g' has its radial share, and the rest in a direction random to it. growth: |g|^2 / |g'|^2. All [n, S].
    """
    return (kept * radial + 1 - kept) / growth


def _logit_variance(arch: Architecture) -> float:
    """Largest over layers, for tokens of unit variance."""
    return float(np.max(arch.d_model**2 * arch.std("attention.query") ** 2 * arch.std("attention.key") ** 2))


def _enough(arch: Architecture, tokens: np.ndarray | None) -> int:
    """Networks to follow: more where given tokens, depth or sharp attention set them apart, fewer of wide ones."""
    sharpness = min(_logit_variance(arch), 4.0)
    wanted = (64 if tokens is None else 256) * (1 + sharpness * arch.num_layers / 6)
    wanted *= min(1.0, 1024 / arch.d_model) ** 4
    size = 2 * arch.seq_len
    affordable = 5e10 / (arch.num_layers * size**2 * (size + min(size, arch.d_model)))
    least = 2 if tokens is None else min(2 * len(tokens), 16)
    return int(np.clip(min(max(wanted, affordable / 100), affordable), least, 1024))


def _representative_pairs(tokens: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """About `count` pairs of the batch's sequences int[count, 2, T + 1], as like each other as the batch's are.

    Every pair equally often where that many are asked for, else every sequence, in the draw of 64 in which the tokens
    of two sequences agree as often as in all pairs, and those of one as in all. A lone sequence is its own list.
    """
    sequences = len(tokens)
    if sequences == 1:
        return np.tile(tokens, (count, 1, 1))
    ring = [*range(sequences), *[-1] * (sequences % 2)]
    games = []
    for _ in range(len(ring) - 1):  # a tournament in rounds, in each of which every sequence plays once, or rests
        games += [g for g in zip(ring[: len(ring) // 2], reversed(ring), strict=False) if -1 not in g]
        ring.insert(1, ring.pop())
    pairs = np.array(games)
    if count >= len(pairs):
        return tokens[np.tile(pairs, (round(count / len(pairs)), 1))]
    frequency = np.stack([np.bincount(row, minlength=tokens.max() + 1) for row in tokens]).astype(float)
    like = frequency @ frequency.T
    one, two = np.trace(like) / sequences, like[~np.eye(sequences, dtype=bool)].mean()
    draws = [rng.permutation(sequences)[pairs[:count]] for _ in range(64)]
    apart = [abs(like[d, d].mean() - one) + abs(like[d[:, 0], d[:, 1]].mean() - two) for d in draws]
    return tokens[draws[int(np.argmin(apart))]]


@dataclass(frozen=True)
class _Batch:
    """Which tokens of a network's sequences agree, and for how many pairs of the batch's sequences each block stands.

    same_input, same_target: [n, S, S]; between sequences of random tokens, the probability that two agree.
    weight: [sequences, sequences].
    """

    size: int
    same_input: np.ndarray
    same_target: np.ndarray
    weight: np.ndarray

    @staticmethod
    def of(arch: Architecture, size: int, tokens: np.ndarray, random: bool) -> "_Batch":
        """A batch of that size from tokens [n, sequences, T + 1]; random: they stand for independent ones."""
        networks, sequences, _ = tokens.shape
        same = []
        for part in (tokens[..., :-1], tokens[..., 1:]):  # inputs, targets
            agree = (part[:, :, :, None, None] == part[:, None, None]).astype(np.float32)
            if random:
                others = ~np.eye(sequences, dtype=bool)
                agree = np.where(others[:, None, :, None], np.float32(1 / arch.vocab_size), agree)
            same.append(agree.reshape(networks, sequences * arch.seq_len, -1))
        weight = np.full((sequences, sequences), size * (size - 1) / max(sequences * (sequences - 1), 1))
        np.fill_diagonal(weight, size / sequences)
        return _Batch(size, same[0], same[1], weight)

    def total(self, kernel: np.ndarray) -> float:
        """Sum of a kernel over all pairs of the batch's tokens, in the mean over networks."""
        count = len(self.weight)
        mean = kernel.mean(axis=0, dtype=np.float64).reshape(count, -1, count, len(kernel[0]) // count)
        return float((self.weight * mean.sum(axis=(1, 3))).sum())

    def trace(self, kernel: np.ndarray) -> float:
        """Sum of a kernel's diagonal over the batch's tokens, in the mean over networks."""
        return float(self.weight[0, 0] * np.einsum("nss->ns", kernel).mean(axis=0, dtype=np.float64).sum())


@dataclass(frozen=True)
class _Stream:
    """The residual stream at one place.

    coordinates: of each token over sqrt(d_model), along a frame of at most d_model axes that spans them, [n, S, axes].
    The first axis is that of equal coordinates, so that its entry is the mean over the coordinates, which LayerNorm
    takes out; the others are as random as the weights. kernel: K [n, S, S], their Gram matrix.
    """

    coordinates: np.ndarray
    kernel: np.ndarray

    def norm(self, arch: Architecture) -> "_Norm":
        """The kernel after the norm, with what its Jacobian needs."""
        rows, kernel = self.coordinates, self.kernel
        if arch.norm == "layer_norm":
            rows, kernel = rows[..., 1:], kernel - _outer(rows[..., 0])
        divisor = np.sqrt(np.einsum("nss->ns", kernel) + np.float32(arch.norm_epsilon))
        return _Norm(rows / divisor[..., None], kernel * _outer(1 / divisor), divisor)

    def observed_variance(self, arch: Architecture, batch: _Batch) -> float:
        """Variance about the mean over the whole batch, which is what one measures."""
        tokens = batch.size * arch.seq_len
        return batch.trace(self.kernel) / tokens - batch.total(_outer(self.coordinates[..., 0])) / tokens**2


@dataclass(frozen=True)
class _Norm:
    """Of z, the stream after a norm: coordinates over sqrt(d_model), kernel [n, S, S], and the divisors [n, S]."""

    rows: np.ndarray
    kernel: np.ndarray
    divisor: np.ndarray

    def jacobian(self, arch: Architecture) -> np.ndarray:
        """tr(J_t J_t'^T) / d: 1 / (divisor divisor') times what the two projectors share."""
        retained = np.einsum("nss->ns", self.kernel)  # 1 but for the norm's epsilon
        lost = retained[:, :, None] + retained[:, None, :] - self.kernel**2
        return (1 - _mean_share(arch) - lost / arch.d_model) * _outer(1 / self.divisor)


def _mean_share(arch: Architecture) -> float:
    return 1 / arch.d_model if arch.norm == "layer_norm" else 0.0


def _outer(values: np.ndarray) -> np.ndarray:
    return values[:, :, None] * values[:, None, :]


def _embed(arch: Architecture, batch: _Batch, draws: Draws) -> _Stream:
    """The stream at the first place."""
    d, (networks, tokens, _) = arch.d_model, batch.same_input.shape
    coordinates = np.zeros((networks, tokens, d if d <= 2 * tokens else 1 + tokens), np.float32)
    if arch.positions == "sinusoidal":
        code = sinusoids(arch.seq_len, d) / np.sqrt(d)
        frame = np.linalg.qr(np.column_stack([np.ones(d), code.T])).Q
        coordinates[..., : frame.shape[1]] = np.tile(code @ frame, (len(batch.weight), 1))
    stream = _Stream(coordinates, coordinates @ coordinates.mT)
    size = np.float32(_row_size(arch))
    along, beside = random_rows(draws, root(batch.same_input * size), d, coordinates.shape[-1])
    if embedding(arch.embedding).layer_norm:
        if arch.norm == "layer_norm":
            along[..., 0] = 0
        own = np.sum(along**2, axis=-1, keepdims=True) + np.sum(beside**2, axis=-1, keepdims=True)
        divisor = np.sqrt(own + np.float32(arch.norm_epsilon))
        along, beside = along / divisor, beside / divisor
    stream = _add(stream, along, beside)
    if arch.positions == "learned":
        own = np.tile(np.eye(arch.seq_len, dtype=np.float32), (networks, len(batch.weight), len(batch.weight)))
        own *= np.float32(arch.std("position")[0] ** 2)
        stream = _add(stream, *random_rows(draws, root(own), d, coordinates.shape[-1]))
    return stream


def _row_size(arch: Architecture) -> float:
    """Mean square of a coordinate of the embedding's output, before its norm where it has one."""
    return float(arch.std("embedding")[0] * arch.evaluate(embedding(arch.embedding).multiplier)) ** 2


def _add(stream: _Stream, along: np.ndarray, beside: np.ndarray) -> _Stream:
    """The stream after rows are added, with those coordinates and a root of what their Gram matrix has beside them."""
    coordinates = stream.coordinates + along
    if not beside.shape[-1]:
        return _Stream(coordinates, coordinates @ coordinates.mT)
    first, others = coordinates[..., :1], coordinates[..., 1:]
    kernel = others @ others.mT + beside @ beside.mT
    return _Stream(np.concatenate([first, root(kernel)], axis=-1), kernel + first @ first.mT)


@dataclass(frozen=True)
class _FeedForward:
    """K += d_ff s_2^2 E[F F'];  G += (d s_1^2)(d_ff s_2^2) E[F' F''] o G through the norm."""

    norm: _Norm
    hidden: np.ndarray
    slope: np.ndarray

    @staticmethod
    def forward(
        arch: Architecture, layer: int, norm: _Norm, batch: _Batch, draws: Draws
    ) -> tuple["_FeedForward", np.ndarray]:
        """The sub-layer, and the rows [n, S, k] that a Gaussian matrix of unit variance makes its output of."""
        before = norm.kernel * np.float32(arch.d_model * arch.std("feed_forward.up")[layer] ** 2)
        hidden, slope = dual_activation(activation(arch.activation), before)
        std = np.float32(np.sqrt(arch.ff_width) * arch.std("feed_forward.down")[layer])
        rows = root(hidden) @ wishart_root(draws, len(hidden), hidden.shape[-1], arch.ff_width)
        return _FeedForward(norm, hidden, slope), rows * std

    def backward(
        self,
        arch: Architecture,
        layer: int,
        batch: _Batch,
        gradient: np.ndarray,
        lost: np.ndarray,
        draws: Draws,
    ) -> tuple[np.ndarray, dict[str, float]]:
        """(increment of the gradient kernel before the norm's Jacobian, squares of the matrices' gradients)."""
        d, width = arch.d_model, arch.ff_width
        inner = gradient * self.slope * np.float32(d * arch.std("feed_forward.down")[layer] ** 2)
        squares = {
            "feed_forward.up": d * width * batch.total(inner * self.norm.kernel),
            "feed_forward.down": d * width * batch.total(gradient * self.hidden),
        }
        return inner * np.float32(width * arch.std("feed_forward.up")[layer] ** 2), squares


@dataclass(frozen=True)
class _Attention:
    """K += (d s_V^2)(d s_O^2) A C A^T;  G += value path A^T G A, and score path through queries and keys.

    heads: all of a narrow model's; of a wide one's, whose mean varies less, as many as its attention is sharp. mixed:
    o o^T in the mean over all heads and their coordinates, A C A^T on average.
    """

    norm: _Norm
    mixed: np.ndarray
    heads: Heads

    @staticmethod
    def forward(
        arch: Architecture, layer: int, norm: _Norm, batch: _Batch, draws: Draws
    ) -> tuple["_Attention", np.ndarray]:
        """As the feed-forward's."""
        query, key, value, output = (
            arch.d_model * arch.std(f"attention.{name}")[layer] ** 2 for name in ("query", "key", "value", "output")
        )
        drawn = max(2**18 // arch.d_model // arch.d_head, int(8 * min(_logit_variance(arch), 4.0)), 1)
        group = min(arch.num_heads // arch.kv_heads, drawn)
        groups = min(arch.kv_heads, drawn // group)
        heads = Heads.draw(
            draws,
            norm.rows,
            len(batch.weight),
            (groups, group, arch.d_head),
            (query, key),
            arch.positions == "rope",
        )
        if groups * group == arch.num_heads:
            rows = flat(heads.attention() @ heads.values) * np.float32(arch.num_heads**-0.5)
        else:
            rows = root(_sandwich(heads.attention(), norm.kernel))
            rows = rows @ wishart_root(draws, len(rows), rows.shape[-1], arch.kv_heads * arch.d_head)
        return _Attention(norm, rows @ rows.mT, heads), rows * np.float32(np.sqrt(value * output))

    def backward(
        self,
        arch: Architecture,
        layer: int,
        batch: _Batch,
        gradient: np.ndarray,
        lost: np.ndarray,
        draws: Draws,
    ) -> tuple[np.ndarray, dict[str, float]]:
        """As the feed-forward's."""
        d, z = arch.d_model, self.norm.kernel
        query, key, value, output = (
            np.float32(arch.std(f"attention.{name}")[layer] ** 2) for name in ("query", "key", "value", "output")
        )
        reaching, gain = gradient * np.float32(d * output), np.float32(d * d * value)
        attention = self.heads.attention()
        values = _sandwich(attention.mT, reaching)
        queries, keys = self.heads.score_gradients(draws, attention, root(reaching), lost, arch.num_heads)
        squares = {
            "attention.query": d * float(gain) * batch.total(queries * z),
            "attention.key": d * float(gain) * batch.total(keys * z),
            "attention.value": d * d * batch.total(values * z),
            "attention.output": d * d * d * float(value) * batch.total(gradient * self.mixed),
        }
        return values * (d * value) + (queries * query + keys * key) * gain, squares


def _sandwich(matrices: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """M K M^T of a kernel [n, S, S] in the mean over heads, M block-diagonal with [n, heads, sequences, T, T]."""
    n, heads, sequences, seq_len, _ = matrices.shape
    kernel = kernel[:, None]
    for _ in range(2):
        rows = kernel.reshape(n, -1, sequences, seq_len, sequences * seq_len)
        kernel = (matrices @ rows).reshape(n, heads, sequences * seq_len, -1).mT
    return kernel.mean(axis=1)


def _upstream(arch: Architecture, batch: _Batch, norm: _Norm) -> tuple[np.ndarray, float]:
    """(gradient kernel at the last place, square of the head's gradient norm), from that of softmax minus one-hot.

    E[p_t . p_t'] by `softmax_overlap`; a target's probability is 1 / V on average.
    """
    d, tokens = arch.d_model, batch.size * arch.seq_len
    gain = arch.logit_scale**2 * arch.std("head")[0] ** 2
    overlap = softmax_overlap(norm.kernel * np.float32(gain * d), arch.vocab_size)
    error = (overlap - 2 / arch.vocab_size + batch.same_target) / tokens**2
    head = arch.logit_scale**2 * d * batch.total(error * norm.kernel)
    return error * np.float32(gain) * norm.jacobian(arch), head


def _table_gradient(arch: Architecture, batch: _Batch, gradient: np.ndarray) -> float:
    """Square of the norm of the table's gradient: rows of equal tokens add up, then the embedding's own Jacobian."""
    method = embedding(arch.embedding)
    factor = arch.evaluate(method.multiplier) ** 2 * arch.evaluate(method.gradient_share) ** 2
    if method.layer_norm:
        share = _mean_share(arch)
        factor *= (1 - 1 / arch.d_model - share) / (_row_size(arch) * (1 - share) + arch.norm_epsilon)
    return arch.d_model * factor * batch.total(gradient * batch.same_input)
