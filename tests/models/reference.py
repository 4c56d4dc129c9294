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
        stream = _block(params.blocks, stream, layer, arch)
    head = table.T if params.head is None else np.asarray(params.head.weight, np.float64)
    if arch.block not in ("post_ln", "deepnorm", "deepnorm_glm", "rezero", "no_norm"):
        stream = [_norm(x, params.final_norm, None, arch) for x in stream]
    return np.stack([x @ head * arch.logit_scale for x in stream])


def _block(block, stream, layer, arch):
    """Every arrangement written out from its paper."""
    name, depth = arch.block, arch.num_layers
    pre_attention, pre_feed_forward = block.attention_residual.pre, block.feed_forward_residual.pre
    attention = lambda rows: _attention(block.attention, rows, layer, arch)  # noqa: E731
    feed_forward = lambda rows: [_feed_forward(block.feed_forward, z, layer, arch) for z in rows]  # noqa: E731

    def normed(rows, norm):
        return [_norm(x, norm, layer, arch) for x in rows]

    if arch.attention == "qk_fc_norm":  # also after Proj and FC2
        plain_attention, plain_feed_forward = attention, feed_forward
        attention = lambda rows: normed(plain_attention(rows), block.attention_residual.output)  # noqa: E731
        feed_forward = lambda rows: normed(plain_feed_forward(rows), block.feed_forward_residual.output)  # noqa: E731
    before_attention = (
        stream if arch.attention == "qkv_norm" else normed(stream, pre_attention) if pre_attention else []
    )
    if name == "parallel":
        z = normed(stream, pre_attention or pre_feed_forward)
        both = zip(stream, attention(before_attention), feed_forward(z), strict=True)
        return [x + y + w for x, y, w in both]
    if name in ("post_ln", "deepnorm", "deepnorm_glm"):
        share = {"post_ln": 1, "deepnorm": (2 * depth) ** 0.25, "deepnorm_glm": (2 * depth) ** 0.5}[name]
        total = [share * x + y for x, y in zip(stream, attention(stream), strict=True)]
        stream = normed(total, block.attention_residual.post)
        total = [share * x + y for x, y in zip(stream, feed_forward(stream), strict=True)]
        return normed(total, block.feed_forward_residual.post)
    if name in ("rezero", "no_norm"):
        factors = [1.0, 1.0]
        if name == "rezero":
            factors = [np.asarray(r.branch, np.float64)[layer] for r in _residuals(block)]
        stream = [x + factors[0] * y for x, y in zip(stream, attention(stream), strict=True)]
        return [x + factors[1] * y for x, y in zip(stream, feed_forward(stream), strict=True)]
    if name == "output_norm":
        outputs = normed(attention(stream), block.attention_residual.output)
        stream = [x + y for x, y in zip(stream, outputs, strict=True)]
        outputs = normed(feed_forward(stream), block.feed_forward_residual.output)
        return [x + y for x, y in zip(stream, outputs, strict=True)]
    shortcut, branches, damped = 1.0, [1.0, 1.0], 1.0
    if name == "deep_scale_lm":
        shortcut, branches = math.sqrt(1 - 1 / (2 * depth)), [math.sqrt(1 / (2 * depth))] * 2
    if name == "depth_mup":
        branches = [depth**-0.5] * 2
    if name == "layer_scale":
        branches = [np.asarray(r.branch, np.float64)[layer] for r in _residuals(block)]
    if name == "ln_scaling":
        damped = 1 / math.sqrt(layer + 1)
    outputs = attention([z * damped for z in before_attention])
    if name == "sandwich":
        outputs = normed(outputs, block.attention_residual.output)
    stream = [shortcut * x + branches[0] * y for x, y in zip(stream, outputs, strict=True)]
    outputs = feed_forward([z * damped for z in normed(stream, pre_feed_forward)])
    if name == "sandwich":
        outputs = normed(outputs, block.feed_forward_residual.output)
    return [shortcut * x + branches[1] * y for x, y in zip(stream, outputs, strict=True)]


def _residuals(block):
    return block.attention_residual, block.feed_forward_residual


def _feed_forward(weights, z, layer, arch):
    hidden = _linear(weights.up, z, layer)
    if arch.activation in ("swiglu", "geglu"):
        function = {"swiglu": "silu", "geglu": "gelu"}[arch.activation]
        gate = _linear(weights.gate, z, layer)
        hidden = np.array([_activation(function, g) * h for g, h in zip(gate, hidden, strict=True)])
    else:
        hidden = np.array([_activation(arch.activation, h) for h in hidden])
    if arch.block == "sub_ln":
        hidden = _norm(hidden, weights.inner_norm, layer, arch)
    return _linear(weights.down, hidden, layer)


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
            query = _projected(weights, "query", queries[t], head, t, layer, arch)
            scores = []
            for s in range(t + 1):
                key = _projected(weights, "key", keys[s], shared, s, layer, arch)
                score = float(query @ key) / math.sqrt(width)
                if arch.attention == "soft_temp":
                    score *= 0.5
                if arch.attention == "mup_attention":
                    score = float(query @ key) / width
                if arch.attention in ("soft_cap", "qk_norm_cap"):
                    score = 50 * math.tanh(score / 50)
                if arch.positions == "alibi":
                    score -= _slope(head, arch.num_heads) * (t - s)
                scores.append(score)
            largest = max(scores)
            weight = np.array([math.exp(score - largest) for score in scores])
            weight = weight / weight.sum()
            if arch.attention == "soft_clip":
                weight = [min(max(1.06 * w - 0.03, 0), 1) for w in weight]
            mixed = np.zeros(width)
            for s, w in enumerate(weight):
                mixed += w * _projected(weights, "value", values[s], shared, s, layer, arch)
            heads.append(mixed)
        joined = np.concatenate(heads)
        if arch.block == "sub_ln":
            joined = _norm(joined, weights.inner_norm, layer, arch)
        outputs.append(_linear(weights.output, joined, layer))
    return outputs


def _projected(weights, name, row, head, position, layer, arch):
    """One head's query, key or value: its part of the projection, normed where the variant says, turned by RoPE."""
    x = row[head * arch.d_head : (head + 1) * arch.d_head]
    variants = ("qkv_norm",) if name == "value" else ("qk_norm", "qk_norm_cap", "qkv_norm", "qk_fc_norm")
    if arch.attention in variants:
        x = _norm(x, getattr(weights, f"{name}_norm"), layer, arch)
    return x if name == "value" else _turn(x, position, arch)


def _slope(head, heads):
    """ALiBi, the authors' recipe: powers of 2^(-8/n); for other numbers of heads every second one of twice as many."""
    lower = 2 ** math.floor(math.log2(heads))
    if head < lower:
        return 2 ** (-8 * (head + 1) / lower)
    return 2 ** (-8 * (2 * (head - lower) + 1) / (2 * lower))


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
    weight = np.asarray(linear.weight, np.float64)[layer]
    if linear.gain is not None:
        weight = weight * float(linear.gain[layer]) / np.linalg.svd(weight)[1][0]
    y = x @ weight
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
