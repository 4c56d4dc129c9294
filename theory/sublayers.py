"""Attention and the feed-forward of some networks: forward as rows that a Gaussian matrix makes the output of, backward
as what they add to the gradient's kernel and what their matrices receive."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from theory.activation import activation
from theory.architecture import Architecture
from theory.attention_scheme import attention_scheme
from theory.dual_activation import dual_activation, growth_moment, mean_activation, sampled
from theory.gram import Draws, enlarged, root, wishart_root
from theory.positions import alibi_slopes
from theory.random_attention import Heads, Variant, flat
from theory.stream import Norm, Stream, blocks, cosine, diagonal, mean_share, outer, pair_sum, taken
from theory.token_batch import TokenBatch

_UNITS = 128
"""of a wide hidden layer that are drawn"""


@dataclass(frozen=True)
class Arriving:
    """dL/d(output) of a sub-layer.

    kernel: [n, S, S]. lost: [n, S], which share of its variance it lacks along the output itself, where the weights
    that have made it are larger than elsewhere. mean: B [n, 1, sequences, T, T] where that of token t runs along the
    outputs, sum_u B_tu y_u, with a random rest; None: it has no such mean.
    """

    kernel: np.ndarray
    lost: np.ndarray
    mean: np.ndarray | None


@dataclass(frozen=True)
class Returned:
    """dL/d(input) of a sub-layer, and what its matrices receive.

    kernel: [n, S, S], of the fluctuation about a mean along the inputs, which is left to add. mean: B as in `Arriving`.
    squares: of the norms of the matrices' gradients. heard: [n, S], how much of the kernel's diagonal may lie along the
    token even where a norm hides the outputs' lengths: what has come through logits that grow with the token, or from
    outputs that it is only a part of.
    """

    kernel: np.ndarray
    mean: np.ndarray | None
    squares: dict[str, float]
    heard: np.ndarray


class Sublayer(Protocol):
    """Either part of a block, in one layer of some networks."""

    def backward(self, arch: Architecture, layer: int, batch: TokenBatch, arriving: Arriving, draws: Draws) -> Returned:
        """From dL/d(output) to dL/d(input)."""
        ...

    def expected(self, arch: Architecture, layer: int) -> np.ndarray:
        """Mean over the output matrix of y_t . y_t' / d, of outputs before a norm on them, [n, S, S]."""
        ...

    def response(self, arch: Architecture, layer: int, batch: TokenBatch, size: np.ndarray) -> np.ndarray:
        """y_t . (dy_t/dx_s x_s) / d of outputs and tokens, [n, 1, sequences, T, T]; size: y_t . y_t / d, [n, S]."""
        ...


def forward(
    part: str, arch: Architecture, layer: int, tokens: Stream, batch: TokenBatch, draws: Draws
) -> tuple[Sublayer, np.ndarray]:
    """That part of a block, and the rows [n, S, k] that a Gaussian matrix of unit variance makes its output of."""
    return (_Attention if part == "attention" else _FeedForward).forward(arch, layer, tokens, batch, draws)


@dataclass(frozen=True)
class _FeedForward:
    """K += d_ff s_2^2 E[F F'];  G += (d s_1^2)(d_ff s_2^2) E[F' F''] o G. Gated: E[F F'] o U, U the other branch's.

    function, slope: the kernels of F and F' in the mean over W_1. other: U. drawn: this network's kernel of the hidden
    layer, whose mean is `hidden`. units: some of it, [n, S, k]. factors: what a gradient is multiplied by on its way to
    W_1 z and, if gated, to W_g z, in these units, each with its kernel in the mean. inner: the norm before W_2, if any.
    """

    tokens: Stream
    function: np.ndarray
    slope: np.ndarray
    other: np.ndarray | None
    drawn: np.ndarray
    units: np.ndarray
    factors: tuple[tuple[np.ndarray, np.ndarray], ...]
    inner: Norm | None

    @property
    def hidden(self) -> np.ndarray:
        return self.function if self.other is None else self.function * self.other

    @staticmethod
    def forward(
        arch: Architecture, layer: int, tokens: Stream, batch: TokenBatch, draws: Draws
    ) -> tuple["_FeedForward", np.ndarray]:
        scheme, width = activation(arch.activation), arch.ff_width
        up, down, gate = (_variance(arch, f"feed_forward.{name}", layer) for name in ("up", "down", "gate"))
        bent = np.float32(arch.d_model * (gate if scheme.gated else up))
        before, shape = tokens.kernel * bent, (*tokens.rows.shape[::2], min(width, _UNITS))
        function, slope = dual_activation(scheme, before)
        units, slopes = sampled(scheme, tokens.rows @ draws.odd(*shape) * np.sqrt(bent))
        kernel, other, inner = function, None, None
        factors: tuple[tuple[np.ndarray, np.ndarray], ...] = ((slopes, slope),)
        if scheme.gated:
            other = tokens.kernel * np.float32(arch.d_model * up)
            linear = tokens.rows @ draws.odd(*shape) * np.float32(np.sqrt(arch.d_model * up))
            factors = (units, function), (slopes * linear, slope * other)
            kernel, units = function * other, units * linear
        elif arch.normed("inner", "feed_forward") and arch.norm == "layer_norm":
            mean = mean_activation(scheme, before)
            kernel, units = kernel - outer(mean), units - mean[..., None]
        drawn = enlarged(units, kernel, width)
        rows = root(drawn)
        if arch.normed("inner", "feed_forward"):
            rows, inner = _inner_norm(arch, rows, width, 1.0)
        made = _FeedForward(tokens, function, slope, other, drawn, units, factors, inner)
        return made, rows * np.float32(np.sqrt(width * down))

    def backward(self, arch: Architecture, layer: int, batch: TokenBatch, arriving: Arriving, draws: Draws) -> Returned:
        gradient, lost, mean = arriving.kernel, arriving.lost, arriving.mean
        d, width, z = arch.d_model, arch.ff_width, self.tokens.kernel
        up, down, gate = (_variance(arch, f"feed_forward.{name}", layer) for name in ("up", "down", "gate"))
        hidden = self.drawn if self.inner is None else self.inner.tokens.kernel
        squares = {"feed_forward.down": d * width * batch.total(gradient * hidden)}
        inner, nothing = gradient * np.float32(d * down), np.zeros_like(lost)
        if self.inner is not None:
            inner, lost = inner * self.inner.jacobian(arch, width, radial=0.0), np.ones_like(lost)
        steady = along = None
        if mean is not None:
            mean = mean * np.float32(d * down)
            mean = mean if self.inner is None else self.inner.along_before(mean)
            steady = mean[:, 0] @ self.units.reshape(len(z), *mean.shape[2:4], -1)
            steady = steady.reshape(self.units.shape)
            mean = mean if self.inner is not None else mean * realized(mean, self.drawn, self.hidden)
        at_up, *at_gates = self._through(inner, lost, steady, width)
        squares["feed_forward.up"] = d * width * batch.total(at_up * z)
        kernel = at_up * np.float32(width * up)
        if self.other is None:
            if mean is not None:
                along = self._bent(arch, mean, d * up) * np.float32(width * up)
            return Returned(kernel, along, squares, nothing)
        squares["feed_forward.gate"] = d * width * batch.total(at_gates[0] * z)
        if mean is not None:
            along = mean * blocks(self.function, mean.shape[2]) * np.float32(width * up)
            bent = self._bent(arch, mean * blocks(self.other, mean.shape[2]), d * gate)
            along = along + bent * np.float32(width * gate)
        return Returned(kernel + at_gates[0] * np.float32(width * gate), along, squares, nothing)

    def _through(
        self, gradient: np.ndarray, lost: np.ndarray, steady: np.ndarray | None, width: int
    ) -> list[np.ndarray]:
        """Kernels of dL/d(hidden) times each of the `factors`.

        gradient: kernel of dL/d(hidden), which lacks along the hidden layer what dL/d(output) lacks along the output.
        steady: its mean. Sum_i a_ti a_ui (P_t P_u)_ii of these units, where P_t takes that much away along h_t.
        """
        less, size = taken(lost), np.sum(self.units**2, axis=-1, keepdims=True)
        direction = self.units / np.sqrt(np.maximum(size, np.finfo(np.float32).tiny))
        both = direction @ direction.mT * outer(less)
        kernels = []
        for factors, expected in self.factors:
            along = factors * direction
            once = (along * direction * less[..., None]) @ factors.mT
            free = enlarged(factors, expected, width) - (once + once.mT - along @ along.mT * both) / np.float32(width)
            kernel = gradient * free
            if steady is not None:
                reached = steady * factors
                kernel = kernel + reached @ reached.mT / np.float32(reached.shape[-1])
            kernels.append(kernel)
        return kernels

    def _bent(self, arch: Architecture, mean: np.ndarray, variance: float) -> np.ndarray:
        """Of F'(u_t) sum_s mean_ts F(u_s): coefficients of its mean along the u, by Stein's lemma."""
        covariance = self.tokens.kernel * np.float32(variance)
        bend = growth_moment(activation(arch.activation), covariance) - covariance * self.slope
        bend = bend / diagonal(covariance)[..., None]
        felt = np.sum(mean * blocks(bend, mean.shape[2]), axis=-1, keepdims=True)
        return mean * blocks(self.slope, mean.shape[2]) + np.eye(mean.shape[-1], dtype=mean.dtype) * felt

    def expected(self, arch: Architecture, layer: int) -> np.ndarray:
        hidden = self.drawn if self.inner is None else self.inner.tokens.kernel
        return hidden * np.float32(arch.ff_width * _variance(arch, "feed_forward.down", layer))

    def response(self, arch: Architecture, layer: int, batch: TokenBatch, size: np.ndarray) -> np.ndarray:
        grown = size if self.other is None else 2 * size
        grown = grown.reshape(len(size), 1, len(batch.weight), -1, 1)
        return np.eye(grown.shape[3], dtype=np.float32) * grown


@dataclass(frozen=True)
class _Attention:
    """K += (d s_V^2)(d s_O^2) A C A^T;  G += value path A^T G A, and score path through queries and keys.

    heads: all of a narrow model's; of a wide one's, whose mean varies less, as many as its attention is sharp. mixed:
    o o^T in the mean over all heads and their coordinates, A C A^T on average. group: how many of them share a value.
    """

    tokens: Stream
    mixed: np.ndarray
    heads: Heads
    group: int
    inner: Norm | None

    @staticmethod
    def forward(
        arch: Architecture, layer: int, tokens: Stream, batch: TokenBatch, draws: Draws
    ) -> tuple["_Attention", np.ndarray]:
        query, key, value, output = (
            arch.d_model * _variance(arch, f"attention.{name}", layer) for name in ("query", "key", "value", "output")
        )
        scheme = attention_scheme(arch.attention)
        size = float(np.einsum("nss->", tokens.kernel)) / tokens.kernel[..., 0].size
        logit_variance = (1.0 if scheme.normed else query * key * size**2) * scheme.temperature_at(arch.d_head) ** 2
        least = 8 if arch.positions == "alibi" else 1
        drawn = max(2**18 // arch.d_model // arch.d_head, int(8 * min(logit_variance, 4.0)), least)
        group = min(arch.num_heads // arch.kv_heads, drawn)
        groups = min(arch.kv_heads, drawn // group)
        slopes = None
        if arch.positions == "alibi":
            chosen = np.linspace(0, arch.num_heads - 1, groups * group).round().astype(int)
            slopes = alibi_slopes(arch.num_heads)[chosen]
        variant = Variant(scheme, arch.positions == "rope", slopes, arch.norm == "layer_norm", arch.norm_epsilon)
        kept = value if scheme.qkv_norm else 1.0  # a linear value's variance is put back at the end
        heads = Heads.draw(
            draws, tokens.rows, len(batch.weight), (groups, group, arch.d_head), (query, key, kept), variant
        )
        linear = 1.0 if scheme.qkv_norm else value
        scale = linear * output
        attention = heads.weights().attention
        if groups * group == arch.num_heads:
            rows = flat(attention @ heads.values) * np.float32(arch.num_heads**-0.5)
        else:
            rows = root(sandwich(attention, _value_kernel(heads.values) if scheme.qkv_norm else tokens.kernel))
            rows = rows @ wishart_root(draws, len(rows), rows.shape[-1], arch.kv_heads * arch.d_head)
        mixed, inner = rows @ rows.mT, None
        if arch.normed("inner", "attention"):
            rows, inner = _inner_norm(arch, rows, arch.d_model, linear)
            scale = output
        return _Attention(tokens, mixed, heads, group, inner), rows * np.float32(np.sqrt(scale))

    def backward(self, arch: Architecture, layer: int, batch: TokenBatch, arriving: Arriving, draws: Draws) -> Returned:
        gradient, lost, mean = arriving.kernel, arriving.lost, arriving.mean
        d, z = arch.d_model, self.tokens.kernel
        query, key, value, output = (
            _variance(arch, f"attention.{name}", layer) for name in ("query", "key", "value", "output")
        )
        scheme = attention_scheme(arch.attention)
        linear = 1.0 if scheme.qkv_norm else d * value
        mixed = self.mixed * np.float32(linear) if self.inner is None else self.inner.tokens.kernel
        squares = {"attention.output": d * d * batch.total(gradient * mixed)}
        reaching = gradient * np.float32(d * output)
        if self.inner is not None:
            reaching, lost = reaching * self.inner.jacobian(arch, radial=0.0), np.ones_like(lost)
        weights = self.heads.weights()
        values = sandwich(weights.attention.mT, reaching * _left(lost, mixed, d)) * self.heads.value_jacobian()
        along = None
        if mean is not None:
            mean = mean * np.float32(d * output)
            mean = mean if self.inner is None else self.inner.along_before(mean)
            at_values = self.heads.before_norm(weights.attention.mT @ mean @ weights.attention)
            n, heads = at_values.shape[:2]
            together = at_values.reshape(n, heads // self.group, self.group, *at_values.shape[2:]).mean(axis=2)
            projected = _value_kernel(self.heads.projected_values())
            added = sandwich(together, projected[:, :: self.group])  # heads that share values agree
            values = values + added * np.float32(linear * arch.num_heads / arch.kv_heads)
            if not (scheme.qkv_norm or self.inner is not None):
                written = mean * realized(mean, self.mixed, sandwich(weights.attention, z))
                at_values = weights.attention.mT @ written @ weights.attention
            along = at_values.mean(axis=1, keepdims=True) * np.float32(d * value)
            through = self.heads.along_scores(weights, mean) * np.float32(linear * arch.d_head**0.5)
            size = np.maximum(diagonal(z), np.finfo(np.float32).tiny).reshape(through.shape)
            along = along + np.eye(along.shape[-1], dtype=along.dtype) * (through / size)
            mean = mean * np.float32(np.sqrt(linear * arch.d_head))
        squares["attention.value"] = d * d * batch.total(values * z)
        gain = np.float32(d * linear)
        queries, keys = self.heads.score_gradients(draws, weights, root(reaching), lost, arch.num_heads, mean)
        squares["attention.query"] = float(gain) * batch.total(queries * z) * d
        squares["attention.key"] = float(gain) * batch.total(keys * z) * d
        scores = (queries * query + keys * key) * gain
        elsewhere = self._elsewhere(weights.attention)
        values = values * outer(np.sqrt(np.maximum(1 - lost * elsewhere / np.float32(d), 0))) * np.float32(d * value)
        heard = np.zeros_like(lost) if scheme.qkv_norm else diagonal(values) * elsewhere
        heard = heard if scheme.normed else heard + diagonal(scores)
        return Returned(values + scores, along, squares, heard)

    def _elsewhere(self, attention: np.ndarray) -> np.ndarray:
        """Which share of what W_V^T returns less than at random, o = A x W_V being known, is not along x_s, [n, S]."""
        kernel = blocks(self.tokens.kernel, attention.shape[2])
        seen, squares = attention @ kernel, attention**2
        lengths = (attention * seen).sum(axis=-1, keepdims=True), np.einsum("nhstt->nhst", kernel)[..., None, :]
        along = (squares * cosine(seen, *lengths) ** 2).sum(axis=(1, 3))
        along = along / np.maximum(squares.sum(axis=(1, 3)), np.finfo(np.float32).tiny)
        return 1 - along.reshape(len(kernel), -1)

    def expected(self, arch: Architecture, layer: int) -> np.ndarray:
        value, output = (arch.d_model * _variance(arch, f"attention.{name}", layer) for name in ("value", "output"))
        if self.inner is not None:
            return self.inner.tokens.kernel * np.float32(output)
        return self.mixed * np.float32(output * (1 if attention_scheme(arch.attention).qkv_norm else value))

    def response(self, arch: Architecture, layer: int, batch: TokenBatch, size: np.ndarray) -> np.ndarray:
        attention = self.heads.weights().attention
        seen = attention @ blocks(self.tokens.kernel, attention.shape[2])
        gain = arch.d_model**2 * _variance(arch, "attention.value", layer) * _variance(arch, "attention.output", layer)
        return np.float32(gain) * (attention * seen).mean(axis=1, keepdims=True)


def _variance(arch: Architecture, kind: str, layer: int) -> float:
    return float(arch.effective_std(kind)[layer] ** 2) if kind in arch.matrices else 0.0


def _left(lost: np.ndarray, hidden: np.ndarray, width: int) -> np.ndarray:
    """What W^T leaves of a gradient's kernel, over that of a W that is random to it: a factor [n, S, S].

    lost: which share of its variance each token's gradient lacks along W h_t. What W^T returns lacks as much along h_t,
    one direction of that width. hidden: kernel of the h. The factor is E tr(P_t P_t') / width, where P_t takes that
    much away along h_t.
    """
    less, size = taken(lost), diagonal(hidden)
    between = cosine(hidden, size[:, :, None], size[:, None, :])
    return 1 - (pair_sum(less) - outer(less) * between**2) / np.float32(width)


def _inner_norm(arch: Architecture, rows: np.ndarray, width: int, variance: float) -> tuple[np.ndarray, Norm]:
    """Rows over the root of their width after a norm over that width; variance: theirs in units of rows'."""
    size = np.sum(rows**2, axis=-1) * np.float32(1 - mean_share(arch, width))
    divisor = np.sqrt(size + np.float32(arch.norm_epsilon / variance))
    rows = rows * np.float32(np.sqrt(1 - mean_share(arch, width))) / divisor[..., None]
    return rows, Norm(Stream(rows, rows @ rows.mT), divisor * np.float32(np.sqrt(variance)))


def _value_kernel(values: np.ndarray) -> np.ndarray:
    """v_t . v_t' of every head's values [n, heads, sequences, T, k], [n, heads, S, S]."""
    values = values.reshape(*values.shape[:2], -1, values.shape[-1])
    return values @ values.mT


def sandwich(matrices: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """M K M^T of a kernel [n, S, S], or one a head [n, heads, S, S], in the mean over heads. M: see `block_product`."""
    kernel = kernel[:, None] if kernel.ndim == 3 else kernel
    return block_product(matrices, block_product(matrices, kernel).mT).mT.mean(axis=1)


def realized(mean: np.ndarray, met: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """g_t . y_t of the mean gradient sum_u mean_tu y_u over what it is on average, [n, 1, sequences, T, 1], at most 4.

    A network whose outputs are longer than on average is longer at the next place too, where its mean gradient is less.
    met, expected: [n, S, S], y_t . y_u of this network and its mean. 1 where the expected products nearly cancel.
    """
    products = mean * blocks(expected, mean.shape[2])
    wanted = np.sum(products, axis=-1, keepdims=True)
    found = np.sum(mean * blocks(met, mean.shape[2]), axis=-1, keepdims=True)
    whole = wanted > 0.1 * np.sum(np.abs(products), axis=-1, keepdims=True)
    return np.where(whole, np.clip(found / np.where(whole, wanted, 1), 0, 4), 1)


def block_product(matrices: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """M K of kernels [n, 1 or heads, S, S] and a block-diagonal M [n, 1 or heads, sequences, T, T]."""
    n, _, sequences, seq_len, _ = matrices.shape
    size = sequences * seq_len
    return (matrices @ kernel.reshape(n, -1, sequences, seq_len, size)).reshape(n, -1, size, size)
