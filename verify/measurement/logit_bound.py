"""How large attention's and the output's logits can get for any tokens, from the weights as they are.

The size of a token is followed through the stack: a norm caps it, a residual addition adds at most what its matrices
allow. |logit| <= |q| |k| / sqrt(d_head), which a soft cap and a norm on queries and keys limit again
(Wortsman et al., arXiv 2309.14322; Rybakov et al., arXiv 2410.16682).
"""

import numpy as np

from models.parameters import Attention, FeedForward, Linear, Norm, Transformer
from theory import Architecture
from theory.activation import activation
from theory.attention_scheme import attention_scheme
from theory.block import block as block_scheme
from theory.embedding import embedding
from theory.feed_forward import lipschitz
from theory.positions import sinusoids
from verify.measurement.sublayer_bound import spectral_norm


def logit_bounds(params: Transformer, layers: list, arch: Architecture) -> tuple[np.ndarray, float]:
    """(float64[num_layers], float): bounds on |attention logit| of every layer, and on |output logit|.

    params, layers: float64 arrays, the second block by block. For every sequence of up to seq_len tokens; inf where
    float64 overflows, and where an activation has no Lipschitz constant. ALiBi only lowers logits.
    """
    with np.errstate(over="ignore"):
        size, bounds = _embedded(params, arch), np.empty(arch.num_layers)
        for layer, block in enumerate(layers):
            shortcut, branch, factor = arch.factors(layer)
            for parts in block_scheme(arch.block).additions:
                total, z, post = shortcut * size, size, None
                for part in parts:
                    residual = getattr(block, f"{part}_residual")
                    if residual.pre is not None:
                        z = factor * _capped(residual.pre)
                    elif not arch.normed("pre", part):
                        z = factor * size
                    if part == "attention":
                        bounds[layer] = _attention_logit(block.attention, z, arch)
                        added = _mixed(block.attention, z, arch)
                    else:
                        added = _transformed(block.feed_forward, z, arch)
                    if residual.output is not None:
                        added = _capped(residual.output)
                    total += added * (branch if residual.branch is None else np.max(np.abs(residual.branch)))
                    post = residual.post
                size = total if post is None else _capped(post)
        last = size if params.final_norm is None else _capped(params.final_norm)
        rows = params.embedding if params.head is None else params.head.weight.T
        output = arch.logit_scale * last * np.max(np.linalg.norm(rows, axis=1))
    return bounds * (1 + 1e-9), float(output * (1 + 1e-9))


def _embedded(params: Transformer, arch: Architecture) -> float:
    """Largest length of a token that enters block 1."""
    size = arch.evaluate(embedding(arch.embedding).multiplier) * np.max(np.linalg.norm(params.embedding, axis=1))
    if params.embedding_norm is not None:
        size = _capped(params.embedding_norm)
    if params.position is not None:
        size += np.max(np.linalg.norm(params.position, axis=1))
    elif arch.positions == "sinusoidal":
        size += np.max(np.linalg.norm(sinusoids(arch.seq_len, arch.d_model), axis=1))
    return float(size)


def _capped(norm: Norm) -> float:
    """Largest length a norm returns: sqrt(width) before its scale."""
    bias = 0.0 if norm.bias is None else np.linalg.norm(norm.bias)
    return float(np.sqrt(norm.scale.shape[-1]) * np.max(np.abs(norm.scale)) + bias)


def _linear(layer: Linear, size: float) -> float:
    return float(spectral_norm(layer.weight) * size + (0.0 if layer.bias is None else np.linalg.norm(layer.bias)))


def _heads(layer: Linear, norm: Norm | None, size: float, arch: Architecture) -> np.ndarray:
    """Largest length of a token in every head, float64[heads]."""
    weight = layer.weight.reshape(arch.d_model, -1, arch.d_head).transpose(1, 0, 2)
    if norm is not None:
        return np.full(len(weight), _capped(norm))
    bias = 0.0 if layer.bias is None else np.linalg.norm(layer.bias.reshape(-1, arch.d_head), axis=1)
    return spectral_norm(weight) * size + bias


def _attention_logit(weights: Attention, size: float, arch: Architecture) -> float:
    scheme = attention_scheme(arch.attention)
    query = _heads(weights.query, weights.query_norm, size, arch)
    key = _heads(weights.key, weights.key_norm, size, arch)
    largest = float(np.max(query * np.repeat(key, arch.num_heads // arch.kv_heads)))
    largest *= scheme.temperature_at(arch.d_head) / np.sqrt(arch.d_head)
    return largest if scheme.cap is None else scheme.cap * float(np.tanh(largest / scheme.cap))


def _mixed(weights: Attention, size: float, arch: Architecture) -> float:
    """Largest length of attention's output; the rows of clipped probabilities sum to at most the clip's upper end."""
    scheme = attention_scheme(arch.attention)
    if weights.inner_norm is not None:
        return _linear(weights.output, _capped(weights.inner_norm))
    values = np.repeat(_heads(weights.value, weights.value_norm, size, arch), arch.num_heads // arch.kv_heads)
    return _linear(weights.output, float(np.linalg.norm(values)) * (1 if scheme.clip is None else scheme.clip[1]))


def _transformed(weights: FeedForward, size: float, arch: Architecture) -> float:
    """Largest length of the feed-forward's output; |F(u)| <= |F(0)| + Lipschitz constant |u|."""
    if weights.inner_norm is not None:
        return _linear(weights.down, _capped(weights.inner_norm))
    scheme = activation(arch.activation)
    at_zero = abs(scheme.at_zero)
    try:
        slope = lipschitz(scheme)
    except ValueError:
        return np.inf
    if weights.gate is None:
        hidden = np.sqrt(arch.ff_width) * at_zero + slope * _linear(weights.up, size)
    else:
        hidden = (at_zero + slope * _linear(weights.gate, size)) * _linear(weights.up, size)
    return _linear(weights.down, float(hidden))
