"""Who can explode: how large the logits of attention and of the output can get, and what that limit grows with.

An attention logit is at most tau |q| |k| / sqrt(d_head), an output logit logit_scale |w| |z|. What caps the lengths is
what tells the variants apart: a norm before the matrices, a norm after them, a cap, or nothing at all
(Wortsman et al., arXiv 2309.14322; Rybakov et al., arXiv 2410.16682; Zhai et al., arXiv 2303.06296).
"""

import math
from dataclasses import dataclass

import numpy as np
import sympy as sp

from theory import notation as s
from theory.architecture import Architecture
from theory.attention import ROOT
from theory.attention_scheme import attention_scheme
from theory.block import block
from theory.derivation import Step, equation, topic
from theory.function_of import function_of

_ROOT_HEAD = sp.sqrt(s.d_head)
ATTENTION = s.temperature * s.length_q * s.length_k / _ROOT_HEAD
CAPPED = s.cap * sp.tanh(ATTENTION / s.cap)
OUTPUT = s.logit_scale * s.length_w * s.length_z
_LENGTHS = (s.d_head, s.temperature, s.length_q, s.length_k)
_attention, _capped = function_of(ATTENTION, *_LENGTHS), function_of(CAPPED, *_LENGTHS, s.cap)
_output = function_of(OUTPUT, s.logit_scale, s.length_w, s.length_z)


@dataclass(frozen=True)
class LogitBound:
    """Limits at initialisation, for any tokens, in nats.

    attention_logit: float64[num_layers], of its size. output_logit: of its size. attention_grows_with,
    output_grows_with: what has to grow for the limit to grow in training: "nothing"; "scales", of the norms on queries
    and keys; "gains", of sigma-reparametrisation; "weights"; and "... and stream" where no norm caps the stream first,
    so that attention's limit is also proportional to its square, the output's to itself.
    """

    attention_logit: np.ndarray
    output_logit: float
    attention_grows_with: str
    output_grows_with: str


def logit_bounds(arch: Architecture, shortcut_std: np.ndarray | None = None) -> LogitBound:
    """Limits from typical sizes: norms of Gaussian matrices in expectation, tokens of the stream's standard deviation.

    shortcut_std: float64[S + 1], the stream's standard deviation at each place; None: `predict` gives it, where no norm
    caps the stream. As `verify.certify` has them from trained weights. Source: this module's topic `logit_limits`.
    """
    scheme, arrangement, d = attention_scheme(arch.attention), block(arch.block), arch.d_model
    input_capped, output_capped = arch.normed("pre", "attention"), arrangement.final_norm
    if shortcut_std is None:
        shortcut_std = np.ones(arch.num_sublayers + 1)
        if not (input_capped and output_capped):
            from theory.propagation import predict

            shortcut_std = predict(arch).shortcut_std
    entering = shortcut_std[:: len(arrangement.additions)]
    size = math.sqrt(d) * arch.factor("input") * (1.0 if input_capped else entering[:-1])
    length = {name: _largest_head(arch, f"attention.{name}") * size for name in ("query", "key")}
    if "query" in scheme.normed:
        length = dict.fromkeys(length, np.full(arch.num_layers, math.sqrt(arch.d_head)))
    limits = _attention(arch.d_head, scheme.temperature_at(arch.d_head), length["query"], length["key"])
    if scheme.cap is not None:
        limits = _capped(arch.d_head, scheme.temperature_at(arch.d_head), length["query"], length["key"], scheme.cap)
    row = float(arch.std("embedding" if arch.tied else "head")[0])
    longest = row * (math.sqrt(d) + math.sqrt(2 * math.log(arch.vocab_size)))
    last = math.sqrt(d) * (1.0 if output_capped else float(shortcut_std[-1]))
    stream = "" if arrangement.post_norm else " and stream"
    grows = ("gains" if scheme.spectral else "weights") + ("" if input_capped else stream)
    grows = "nothing" if scheme.cap is not None else "scales" if "query" in scheme.normed else grows
    return LogitBound(
        limits, float(_output(arch.logit_scale, longest, last)), grows, "weights" + ("" if output_capped else stream)
    )


def _largest_head(arch: Architecture, kind: str) -> np.ndarray:
    """Norm of one head's part of that matrix, float64[num_layers]; the whole acts with norm 1 under sigma_reparam."""
    norm = arch.effective_std(kind) * (math.sqrt(arch.d_model) + math.sqrt(arch.d_head))
    return np.minimum(norm, 1.0) if attention_scheme(arch.attention).spectral else norm


@topic("Who can explode: the limits of the logits")
def logit_limits() -> tuple[Step, ...]:
    """Limits for any tokens. Only a cap holds whatever training does; QK norm leaves the limit to two learned scales,
    sigma-reparametrisation to two learned gains, a norm before attention to two matrices. Without any norm before it
    attention also squares the stream, and what grows the stream grows the logits twice over."""
    logit, uncapped, output = sp.symbols("l l_0 o", nonnegative=True)
    query, key, cap, width = s.length_q, s.length_k, s.cap, sp.sqrt(s.d)
    cauchy = sp.Le(logit, ATTENTION)
    by_matrix = (sp.Le(query, s.norm_Q * s.length_z), sp.Le(key, s.norm_K * s.length_z))
    capped = sp.Le(s.length_z, width)
    bare = equation(s.length_z, width * s.sigma_x)
    before = s.temperature * s.norm_Q * s.norm_K * s.d / _ROOT_HEAD
    by_scale = (sp.Le(query, s.scale_q * _ROOT_HEAD), sp.Le(key, s.scale_k * _ROOT_HEAD))
    gains = (equation(s.norm_Q, s.scale_q), equation(s.norm_K, s.scale_k))
    product = sp.Le(output, OUTPUT)
    final = sp.Le(s.length_z, s.scale_f * width)
    return (
        Step(cauchy, "l = tau q . k / sqrt(d_head), Cauchy and Schwarz; RoPE keeps lengths", kind="cited"),
        *(Step(one, "‖A b‖ <= ‖A‖ ‖b‖, z the token that enters attention", kind="cited") for one in by_matrix),
        Step(
            sp.Le(width * s.sigma_x / ROOT, width),
            "a norm divides x, of length sqrt(d) sigma_x, by root(sigma_x^2 + epsilon): what it returns is capped",
        ),
        Step(capped, "so z under a norm before attention; its scale counts as part of the matrices", kind="given"),
        Step(
            sp.Le(logit, before),
            "a norm before: only the matrices can grow, the logits with the product of both",
            "arXiv 2309.14322",
            using=(cauchy, *by_matrix, capped),
        ),
        Step(bare, "no norm before attention (output_norm, rezero, no_norm): z is the stream itself", kind="given"),
        Step(
            sp.Le(logit, s.sigma_x**2 * before),
            "so the limit grows with the stream's square",
            using=(cauchy, *by_matrix, bare),
        ),
        *(Step(one, "QK norm: sqrt(d_head) times the norm's largest scale", kind="given") for one in by_scale),
        Step(
            sp.Le(logit, s.temperature * s.scale_q * s.scale_k * _ROOT_HEAD),
            "QK norm: matrices and stream have gone from the limit",
            "Dehghani et al., arXiv 2302.05442",
            using=(cauchy, *by_scale),
        ),
        *(Step(one, "sigma-reparametrisation: gamma W / ‖W‖ has the norm gamma", kind="given") for one in gains),
        Step(
            sp.Le(logit, s.temperature * s.scale_q * s.scale_k * s.d / _ROOT_HEAD),
            "sigma-reparametrisation after a norm: the gains alone; sqrt(d_head) becomes d / sqrt(d_head)",
            "Zhai et al., arXiv 2303.06296",
            using=(cauchy, *by_matrix, capped, *gains),
        ),
        Step(
            sp.Le(cap * sp.tanh(uncapped / cap), cap),
            "soft cap: below the cap whatever the logit was",
            "Gemma 2, arXiv 2408.00118",
        ),
        Step(
            sp.Le(cap * sp.tanh(uncapped / cap), uncapped),
            "and below what the logit was",
            "Gemma 2, arXiv 2408.00118",
        ),
        Step(product, "o = logit_scale w . z, w a word's row of the head; Cauchy and Schwarz", kind="cited"),
        Step(final, "the final norm's cap times its largest scale", kind="given"),
        Step(
            sp.Le(output, s.logit_scale * s.length_w * s.scale_f * width),
            "output logits under a final norm",
            "arXiv 2309.14322",
            using=(product, final),
        ),
        Step(
            sp.Le(output, s.logit_scale * s.length_w * width * s.sigma_x),
            "no final norm (rezero, no_norm): z is the stream itself, and they grow with it",
            using=(product, bare),
        ),
    )
