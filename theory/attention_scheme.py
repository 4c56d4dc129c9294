"""Variants of attention: what is done to queries, keys, values and logits before and after the softmax."""

from dataclasses import dataclass

import sympy as sp

from theory.notation import d_head
from theory.schemes import expression, lookup

_MIS = "Rybakov et al., arXiv 2410.16682"


@dataclass(frozen=True)
class AttentionScheme:
    """One variant. Raises ValueError for a cap or temperature that is not positive, or a clip of the wrong order.

    qk_norm: a norm of the architecture's kind on every head's query and key, with a learned scale, before RoPE.
    qkv_norm: on values too, and none before the projections. output_norm: also on the output of both sub-layers.
    temperature: factor on the logits, a number or an expression in `theory.notation.d_head`. cap: logits become
    cap tanh(logit / cap), before ALiBi's bias. clip: after the softmax, probabilities become (high - low) p + low, cut
    off at 0 and 1. spectral: every matrix of a block acts as gamma W / ‖W‖, gamma a learned number that starts at 1.
    """

    name: str
    qk_norm: bool = False
    qkv_norm: bool = False
    output_norm: bool = False
    temperature: float | sp.Expr = sp.S.One
    cap: float | None = None
    clip: tuple[float, float] | None = None
    spectral: bool = False
    source: str = "the user's own"

    def __post_init__(self) -> None:
        where = f"attention {self.name!r}"
        temperature = expression(f"{where}, temperature", self.temperature, (d_head,), "theory.notation")
        object.__setattr__(self, "temperature", temperature)
        if self.cap is not None and not self.cap > 0:
            raise ValueError(f"{where}, cap: must be positive or None, got {self.cap!r}")
        if self.clip is not None and not self.clip[0] <= 0 < 1 <= self.clip[1]:
            raise ValueError(f"{where}, clip: must be (low, high) with low <= 0 and high >= 1, got {self.clip!r}")

    def temperature_at(self, width: int) -> float:
        """The factor on the logits of heads of that width. Raises ValueError where its rule gives none."""
        value = sp.sympify(self.temperature).subs(d_head, width)
        if not (value.is_finite and value.is_positive):
            raise ValueError(
                f"attention {self.name!r}, temperature: {self.temperature} gives {value} at d_head = {width}, not a "
                "positive number"
            )
        return float(value)

    @property
    def normed(self) -> tuple[str, ...]:
        """Which projections every head norms."""
        if self.qkv_norm:
            return ("query", "key", "value")
        return ("query", "key") if self.qk_norm else ()


ATTENTIONS = {
    scheme.name: scheme
    for scheme in (
        AttentionScheme("standard", source="Vaswani et al., arXiv 1706.03762"),
        AttentionScheme("qk_norm", qk_norm=True, source="Dehghani et al., arXiv 2302.05442; arXiv 2309.14322"),
        AttentionScheme("qk_norm_cap", qk_norm=True, cap=50.0, source=_MIS + ": QK norm and soft-capping"),
        AttentionScheme("qkv_norm", qkv_norm=True, source=_MIS + ": on Q, K and V, and none before them"),
        AttentionScheme("qk_fc_norm", qk_norm=True, output_norm=True, source=_MIS + ": and after Proj and FC2"),
        AttentionScheme("soft_cap", cap=50.0, source="Gemma 2, arXiv 2408.00118; " + _MIS),
        AttentionScheme("soft_temp", temperature=0.5, source=_MIS + ": softmax(0.5 s)"),
        AttentionScheme(
            "mup_attention", temperature=1 / sp.sqrt(d_head), source="Yang et al., arXiv 2203.03466: qk / d"
        ),
        AttentionScheme("soft_clip", clip=(-0.03, 1.03), source=_MIS + ": clip(1.06 softmax - 0.03, 0, 1)"),
        AttentionScheme("sigma_reparam", spectral=True, source="Zhai et al., arXiv 2303.06296: gamma W / ‖W‖; " + _MIS),
    )
}


def attention_scheme(scheme: str | AttentionScheme) -> AttentionScheme:
    """The registered variant of that name; an `AttentionScheme` is returned as it is."""
    return lookup("attention", scheme, ATTENTIONS, AttentionScheme)
