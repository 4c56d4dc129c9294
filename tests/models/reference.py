"""The decoder once more in plain float64 NumPy, from the papers' definitions: loops over heads and positions, complex
numbers for RoPE, math.erf for GELU. Shares no code with `models`."""

import math

import numpy as np

from theory import Activation, Architecture
from theory.activation import u as variable


def logits(params, tokens, arch: Architecture, multiplier: float, layer_norm: bool) -> np.ndarray:
    """float64[batch, seq, vocab] of a parameter tree whose leaves NumPy can read."""
    return np.stack([_sequence(params, row, arch, multiplier, layer_norm) for row in np.asarray(tokens)])


def _sequence(params, row, arch, multiplier, layer_norm):
    table = np.asarray(params.embedding, np.float64)
    stream = [table[token] * multiplier for token in row]
    if layer_norm:
        stream = [_norm(x, params.embedding_norm, None, arch) for x in stream]
    for t in range(len(stream)):
        if arch.positions == "learned":
            stream[t] = stream[t] + np.asarray(params.position, np.float64)[t]
        if arch.positions == "sinusoidal":
            half = arch.d_model // 2
            turns = [t / 10000 ** (2 * i / arch.d_model) for i in range(half)]
            stream[t] = stream[t] + np.array([math.sin(a) for a in turns] + [math.cos(a) for a in turns])
    for layer in range(arch.num_layers):
        block = params.blocks
        normed = [_norm(x, block.attention_norm, layer, arch) for x in stream]
        stream = [x + y for x, y in zip(stream, _attention(block.attention, normed, layer, arch), strict=True)]
        normed = [_norm(x, block.feed_forward_norm, layer, arch) for x in stream]
        for t, z in enumerate(normed):
            hidden = np.array([_activation(arch.activation, u) for u in _linear(block.feed_forward.up, z, layer)])
            stream[t] = stream[t] + _linear(block.feed_forward.down, hidden, layer)
    head = table.T if params.head is None else np.asarray(params.head.weight, np.float64)
    return np.stack([_norm(x, params.final_norm, None, arch) @ head * arch.logit_scale for x in stream])


def _attention(weights, normed, layer, arch):
    width = arch.d_head
    queries, keys, values = (
        [_linear(getattr(weights, name), z, layer) for z in normed] for name in ("query", "key", "value")
    )
    outputs = []
    for t in range(len(normed)):
        heads = []
        for head in range(arch.num_heads):
            shared = head * arch.kv_heads // arch.num_heads
            query = _turn(queries[t][head * width : (head + 1) * width], t, arch)
            scores = []
            for s in range(t + 1):
                key = _turn(keys[s][shared * width : (shared + 1) * width], s, arch)
                scores.append(float(query @ key) / math.sqrt(width))
            largest = max(scores)
            weight = [math.exp(score - largest) for score in scores]
            mixed = sum(w * values[s][shared * width : (shared + 1) * width] for s, w in enumerate(weight))
            heads.append(mixed / sum(weight))
        outputs.append(_linear(weights.output, np.concatenate(heads), layer))
    return outputs


def _turn(x, position, arch):
    """RoPE: pair (i, i + d_head/2) as one complex number, turned by position times its frequency."""
    if arch.positions != "rope":
        return x
    half = len(x) // 2
    turned = [(x[i] + 1j * x[i + half]) * np.exp(1j * position * 10000 ** (-i / half)) for i in range(half)]
    return np.array([c.real for c in turned] + [c.imag for c in turned])


def _norm(x, norm, layer, arch):
    scale = np.asarray(norm.scale, np.float64)
    scale = scale if layer is None else scale[layer]
    centred = x - sum(x) / len(x) if arch.norm == "layer_norm" else x
    z = centred / math.sqrt(sum(c * c for c in centred) / len(x) + arch.norm_epsilon) * scale
    if norm.bias is None:
        return z
    bias = np.asarray(norm.bias, np.float64)
    return z + (bias if layer is None else bias[layer])


def _linear(linear, x, layer):
    y = x @ np.asarray(linear.weight, np.float64)[layer]
    return y if linear.bias is None else y + np.asarray(linear.bias, np.float64)[layer]


def _activation(name, u):
    if isinstance(name, Activation):
        return float(name.function.subs(variable, float(u)))
    if name == "identity":
        return u
    if name == "relu":
        return max(u, 0.0)
    if name == "gelu":
        return u * 0.5 * math.erfc(-u / math.sqrt(2))
    if name == "gelu_tanh":
        return 0.5 * u * (1 + math.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
    return u / (1 + math.exp(-u))
