"""Second moments of a pre-LN stack at initialisation, in absolute terms, at the model's true width.

Two kernels over the tokens go through the stack: K[t,t'] = x_t . x_t' / d forward and G[t,t'], the covariance of dL/dx
per coordinate, backward. Forward, a small ensemble of networks is followed, each by the Gram matrix that its own
weights make (`theory.gram`), so that what depends on one network's token lengths and correlations, which compound
with depth, is averaged where it acts. Attention is drawn from its own distribution (`theory.random_attention`), an
activation acts by its dual (`theory.dual_activation`), and the upstream gradient has the true kernel of softmax minus
one-hot.

A network of the ensemble sees two sequences of the batch, or the only one; what they have within and between them
stands for the batch's sequences and pairs. All kernels are float32[n, S, S]: n networks, S = its sequences' tokens.

What is dropped: the dependence between a layer's forward weights and the gradient that comes back through it, and the
gradient's own fluctuations.
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
from theory.gram import random_rows, root
from theory.positions import sinusoids
from theory.random_attention import draw_attention, key_gradients, query_scores, uniform_attention
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
    root. None: enough for 1 to 2 % in the norms (the gradients of query and key up to 7 %) in seconds. Source: arXiv
    2312.16903 made exact to second moments; the chain of Gram matrices of arXiv 2206.02768. Raises ValueError for a
    tied head, for tokens that do not fit, and for a batch size or a number of networks below 1.
    """
    if arch.tied:
        raise ValueError("tied: predict covers an untied head; got tied=True (bound and measure take both)")
    for name, value in (("batch_size", batch_size), ("networks", 1 if networks is None else networks)):
        if value < 1:
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
    largest = max(1, min(len(chosen) // 2, int(np.clip(2**16 // arch.seq_len**2, 4, 64))))
    groups = np.array_split(chosen, -(-len(chosen) // largest))

    def squares(group: np.ndarray, seed: np.random.SeedSequence) -> dict[str, np.ndarray]:
        batch = _Batch.of(arch, batch_size, np.concatenate([group, group]), tokens is None)
        return _squares(arch, batch, np.random.default_rng(seed))

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        drawn = list(pool.map(squares, groups, seeds.spawn(len(groups))))
    sizes = [len(group) for group in groups]
    means = {name: np.average([part[name] for part in drawn], axis=0, weights=sizes) for name in drawn[0]}
    roots = {name: np.sqrt(np.maximum(mean, 0.0)) for name, mean in means.items()}
    shortcut_std, gradient_norm = roots.pop("shortcut_std"), roots.pop("gradient_norm")
    return Prediction(shortcut_std, gradient_norm, float(gradient_norm[0] / gradient_norm[-1]), roots)


def _squares(arch: Architecture, batch: "_Batch", rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Every square that a Prediction has the root of, in the mean over one group of networks."""
    coordinates, stream = _embed(arch, batch, rng)
    places, passed = [stream], []
    for layer in range(arch.num_layers):
        for sublayer in (_Attention, _FeedForward):
            passed.append(sublayer.forward(arch, layer, batch, stream, rng))
            increment, features = passed[-1].increment(arch, layer), passed[-1].features(arch)
            coordinates, stream = _add(arch, coordinates, stream, increment, rng, features)
            places.append(stream)
    gradient, head = _upstream(arch, batch, stream)
    norms = [batch.trace(gradient)]
    squares = {kind: np.zeros(arch.num_layers) for kind in BLOCK_MATRICES}
    for index in reversed(range(len(passed))):
        increment, own = passed.pop().backward(arch, index // 2, batch, gradient, rng)
        for kind, square in own.items():
            squares[kind][index // 2] = square
        gradient = gradient + increment * places[index].norm_jacobian(arch)
        norms.append(batch.trace(gradient))
    return squares | {
        "embedding": np.array([_table_gradient(arch, batch, gradient)]),
        "head": np.array([head]),
        "shortcut_std": np.array([place.observed_variance(arch, batch) for place in places]),
        "gradient_norm": arch.d_model * np.array(norms[::-1]),
    }


def _enough(arch: Architecture, tokens: np.ndarray | None) -> int:
    """Networks to follow: many where it costs little, or where narrowness or sharp attention sets them apart."""
    logits = np.max(arch.d_model**2 * arch.std("attention.query") ** 2 * arch.std("attention.key") ** 2)
    apart = max(16384 / arch.d_model, 16 * min(float(logits), 4.0)) * (64 / arch.seq_len) ** 1.5
    cheap = 2**20 / (arch.num_layers * arch.seq_len**2)
    least = 2 if tokens is None else min(2 * len(tokens), 16)
    return int(np.clip(max(apart, cheap), least, max(256, min(cheap, 1024))))


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

    kernel: K [n, S, S]. offset: mean over the coordinates that every network has, [S]; sinusoidal positions have one,
    and LayerNorm takes it out.
    """

    kernel: np.ndarray
    offset: np.ndarray

    def seen(self, arch: Architecture) -> np.ndarray:
        """The kernel without what LayerNorm takes out of every network alike."""
        return self.kernel - np.outer(self.offset, self.offset) if arch.norm == "layer_norm" else self.kernel

    def variance(self, arch: Architecture) -> np.ndarray:
        """Variance over the coordinates, as the norm sees it; LayerNorm takes the mean out: [n, S]."""
        return np.einsum("nss->ns", self.seen(arch)) * (1 - _mean_share(arch))

    def retained(self, arch: Architecture) -> np.ndarray:
        """z's mean square: 1 but for the norm's epsilon."""
        variance = self.variance(arch)
        return variance / (variance + arch.norm_epsilon)

    def correlation(self, arch: Architecture) -> np.ndarray:
        seen = self.seen(arch)
        return seen * _outer(1 / np.sqrt(np.einsum("nss->ns", seen)))

    def normalized(self, arch: Architecture) -> np.ndarray:
        """Kernel of z, the stream after a norm."""
        return self.correlation(arch) * _outer(np.sqrt(self.retained(arch)))

    def norm_jacobian(self, arch: Architecture) -> np.ndarray:
        """tr(J_t J_t'^T) / d of the norm's Jacobian: 1 / (std std') times what the two projectors share."""
        retained = self.retained(arch)
        lost = retained[:, :, None] + retained[:, None, :] - _outer(retained) * self.correlation(arch) ** 2
        shared = 1 - _mean_share(arch) - lost / arch.d_model
        return shared * _outer(1 / np.sqrt(self.variance(arch) + arch.norm_epsilon))

    def observed_variance(self, arch: Architecture, batch: _Batch) -> float:
        """Variance about the mean over the whole batch, which is what one measures."""
        tokens = batch.size * arch.seq_len
        free = self.kernel - np.outer(self.offset, self.offset)
        mean_square = self.offset.mean(dtype=np.float64) ** 2 + batch.total(free) / tokens**2 / arch.d_model
        return float(batch.trace(self.kernel) / tokens - mean_square)


def _mean_share(arch: Architecture) -> float:
    return 1 / arch.d_model if arch.norm == "layer_norm" else 0.0


def _t(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(x, -1, -2)


def _outer(values: np.ndarray) -> np.ndarray:
    return values[:, :, None] * values[:, None, :]


def _embed(arch: Architecture, batch: _Batch, rng: np.random.Generator) -> tuple[np.ndarray, _Stream]:
    """(coordinates, stream) at the first place, as `_add` has them."""
    d, method = arch.d_model, embedding(arch.embedding)
    networks, tokens, _ = batch.same_input.shape
    sequences = len(batch.weight)
    places = np.zeros((tokens, d), np.float32)
    if arch.positions == "sinusoidal":
        places += np.tile(sinusoids(arch.seq_len, d) / np.sqrt(d), (sequences, 1))
    gram = places @ places.T
    coordinates = np.tile(places if d <= 2 * tokens else root(gram), (networks, 1, 1))
    stream = _Stream(np.tile(gram, (networks, 1, 1)), d**0.5 * places.mean(axis=-1))
    size, length = (arch.std("embedding")[0] * arch.evaluate(method.multiplier)) ** 2, None
    if method.layer_norm:
        variance = size * (1 - _mean_share(arch))
        size = length = variance / (variance + arch.norm_epsilon)
    coordinates, stream = _add(arch, coordinates, stream, batch.same_input * np.float32(size), rng, length=length)
    if arch.positions == "learned":
        own = np.tile(np.eye(arch.seq_len, dtype=np.float32), (networks, sequences, sequences))
        own *= np.float32(arch.std("position")[0] ** 2)
        coordinates, stream = _add(arch, coordinates, stream, own, rng)
    return coordinates, stream


def _add(
    arch: Architecture,
    coordinates: np.ndarray,
    stream: _Stream,
    increment: np.ndarray,
    rng: np.random.Generator,
    features: int | None = None,
    length: float | None = None,
) -> tuple[np.ndarray, _Stream]:
    """(coordinates, stream) after Gaussian rows with `increment` as their expected kernel are added.

    coordinates: of each token over sqrt(d_model), along a frame of at most d_model axes that spans them, [n, S, axes].
    features: how many coordinates the rows' weights act on, which vary themselves; None where they are given.
    length: mean square that each row is brought to.
    """
    along, beside = random_rows(rng, increment, features, arch.d_model, coordinates.shape[-1])
    if length is not None:
        own = np.sum(along**2, axis=-1, keepdims=True) + np.sum(beside**2, axis=-1, keepdims=True)
        along, beside = (rows * np.sqrt(np.float32(length) / own) for rows in (along, beside))
    coordinates = coordinates + along
    kernel = coordinates @ _t(coordinates)
    if beside.shape[-1]:
        kernel += beside @ _t(beside)
        coordinates = root(kernel)
    return coordinates, _Stream(kernel, stream.offset)


@dataclass(frozen=True)
class _FeedForward:
    """K += d_ff s_2^2 E[F F'];  G += (d s_1^2)(d_ff s_2^2) E[F' F''] o G through the norm."""

    normalized: np.ndarray
    hidden: np.ndarray
    slope: np.ndarray

    @staticmethod
    def forward(
        arch: Architecture, layer: int, batch: _Batch, stream: _Stream, rng: np.random.Generator
    ) -> "_FeedForward":
        function, correlation = activation(arch.activation), stream.correlation(arch)
        std = np.sqrt(np.float32(arch.d_model * arch.std("feed_forward.up")[layer] ** 2) * stream.retained(arch))
        hidden, slope = (dual_activation(function, std, std, correlation, derivative) for derivative in (False, True))
        return _FeedForward(stream.normalized(arch), hidden, slope)

    @staticmethod
    def features(arch: Architecture) -> int:
        return arch.ff_width

    def increment(self, arch: Architecture, layer: int) -> np.ndarray:
        return self.hidden * np.float32(arch.ff_width * arch.std("feed_forward.down")[layer] ** 2)

    def backward(
        self, arch: Architecture, layer: int, batch: _Batch, gradient: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, dict[str, float]]:
        d, width = arch.d_model, arch.ff_width
        inner = gradient * self.slope * np.float32(d * arch.std("feed_forward.down")[layer] ** 2)
        squares = {
            "feed_forward.up": d * width * batch.total(inner * self.normalized),
            "feed_forward.down": d * width * batch.total(gradient * self.hidden),
        }
        return inner * np.float32(width * arch.std("feed_forward.up")[layer] ** 2), squares


@dataclass(frozen=True)
class _Attention:
    """K += (d s_V^2)(d s_O^2) A C A^T;  G += value path A^T G A, and score path through queries and keys.

    Some of a network's heads are drawn, all as rows of one long list. tokens: a root of `normalized`. mixed: A C A^T in
    the mean over all heads. attention: float32[n * heads, sequences, T, T]. queries, keys: over sqrt(d_head),
    [n * heads, sequences, T, d_head].
    """

    normalized: np.ndarray
    tokens: np.ndarray
    mixed: np.ndarray
    attention: np.ndarray
    queries: np.ndarray
    keys: np.ndarray

    @staticmethod
    def forward(
        arch: Architecture, layer: int, batch: _Batch, stream: _Stream, rng: np.random.Generator
    ) -> "_Attention":
        z = stream.normalized(arch)
        tokens, heads = root(z), int(np.clip(arch.seq_len // 64, 1, arch.num_heads))
        query, key = (arch.d_model * arch.std(f"attention.{name}")[layer] ** 2 for name in ("query", "key"))
        shape = (heads * len(z), len(batch.weight), arch.seq_len, -1)
        each = np.repeat(tokens, heads, axis=0).reshape(shape)
        drawn = draw_attention(rng, each, arch.d_head, query, key, arch.positions == "rope")
        own = _mean_of(_sandwich(drawn[0], np.repeat(z, heads, axis=0)), z)
        flat = _sandwich(uniform_attention(arch.seq_len).astype(np.float32), z, len(batch.weight))
        expected = flat + (own - flat).mean(axis=0)
        mixed = expected + np.float32((heads / arch.num_heads) ** 0.5) * (own - expected)
        return _Attention(z, tokens, mixed, *drawn)

    @staticmethod
    def features(arch: Architecture) -> int:
        return arch.kv_heads * arch.d_head

    def increment(self, arch: Architecture, layer: int) -> np.ndarray:
        value, output = (arch.d_model * arch.std(f"attention.{name}")[layer] ** 2 for name in ("value", "output"))
        return self.mixed * np.float32(value * output)

    def backward(
        self, arch: Architecture, layer: int, batch: _Batch, gradient: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, dict[str, float]]:
        d, z = arch.d_model, self.normalized
        query, key, value, output = (
            np.float32(arch.std(f"attention.{name}")[layer] ** 2) for name in ("query", "key", "value", "output")
        )
        reaching, gain = gradient * np.float32(d * output), np.float32(d * d * value)
        heads, rope = len(self.attention) // len(z), arch.positions == "rope"
        each, tokens, gradients = (np.repeat(x, heads, axis=0) for x in (reaching, self.tokens, root(reaching)))
        values = _mean_of(_sandwich(_t(self.attention), each), z)
        queries = _mean_of(query_scores(rng, self.attention, self.keys, tokens, rope), z) * reaching * gain
        keys = _mean_of(key_gradients(rng, self.attention, self.queries, tokens, gradients, rope), z) * gain
        at_queries = d * batch.total(queries * z)
        squares = {
            "attention.query": at_queries,
            "attention.key": at_queries * float(query / key),
            "attention.value": d * d * batch.total(values * z),
            "attention.output": d * d * d * float(value) * batch.total(gradient * self.mixed),
        }
        return values * (d * value) + queries * query + keys * key, squares


def _mean_of(kernels: np.ndarray, networks: np.ndarray) -> np.ndarray:
    """Mean over the heads of each network: [n * heads, S, S] to [n, S, S]."""
    return kernels.reshape(len(networks), -1, *kernels.shape[1:]).mean(axis=1)


def _sandwich(matrix: np.ndarray, kernel: np.ndarray, sequences: int | None = None) -> np.ndarray:
    """M K M^T of a kernel [n, S, S], M block-diagonal with the matrices [n, sequences, T, T] of its sequences."""
    sequences = matrix.shape[1] if sequences is None else sequences
    for _ in range(2):
        rows = kernel.reshape(len(kernel), sequences, matrix.shape[-1], -1)
        kernel = _t((matrix @ rows).reshape(kernel.shape))
    return kernel


def _upstream(arch: Architecture, batch: _Batch, stream: _Stream) -> tuple[np.ndarray, float]:
    """(gradient kernel at the last place, square of the head's gradient norm), from that of softmax minus one-hot.

    E[p_t . p_t'] by `softmax_overlap`; a target's probability is 1 / V on average.
    """
    d, size, tokens = arch.d_model, arch.vocab_size, batch.size * arch.seq_len
    gain = arch.logit_scale**2 * arch.std("head")[0] ** 2
    z = stream.normalized(arch)
    variance = gain * d * float(np.einsum("nss->ns", z).mean(dtype=np.float64))
    overlap = softmax_overlap(variance, stream.correlation(arch), size)
    error = (overlap - 2 / size + batch.same_target) / tokens**2
    head = arch.logit_scale**2 * d * batch.total(error * z)
    return error * np.float32(gain) * stream.norm_jacobian(arch), head


def _table_gradient(arch: Architecture, batch: _Batch, gradient: np.ndarray) -> float:
    """Square of the norm of the table's gradient: rows of equal tokens add up, then the embedding's own Jacobian."""
    method = embedding(arch.embedding)
    factor = arch.evaluate(method.multiplier) ** 2 * arch.evaluate(method.gradient_share) ** 2
    if method.layer_norm:
        size = (arch.std("embedding")[0] * arch.evaluate(method.multiplier)) ** 2
        variance = size * (1 - _mean_share(arch))
        lost = 1 / arch.d_model + _mean_share(arch)
        factor *= (1 - lost) / (variance + arch.norm_epsilon)
    return arch.d_model * factor * batch.total(gradient * batch.same_input)
