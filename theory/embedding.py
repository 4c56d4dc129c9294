"""What is done with a token's row of the embedding table before it enters the first block.

Three axes that are often confused stay apart here: a multiplier on the output, the table's initial standard
deviation, and a LayerNorm after the look-up (arXiv 2312.16903, section 4). Embed Detach changes the gradient only.
"""

from dataclasses import dataclass

import sympy as sp

from theory.notation import V, d
from theory.schemes import expression, lookup


@dataclass(frozen=True)
class Embedding:
    """One embedding method; positions, where there are any, are added after it.

    multiplier: factor on the table's row, an expression in d and V. layer_norm: a norm on the product,
    of the architecture's own kind.
    gradient_share: share a of the gradient that reaches the table, a e + (1 - a) stop_gradient(e).
    table_std: the table's initial standard deviation; None leaves it to the initialisation.
    """

    name: str
    multiplier: sp.Expr = sp.S.One
    layer_norm: bool = False
    gradient_share: sp.Expr = sp.S.One
    table_std: sp.Expr | None = None
    source: str = "the user's own"

    def __post_init__(self) -> None:
        for field in ("multiplier", "gradient_share", "table_std"):
            value = getattr(self, field)
            if value is not None or field != "table_std":
                where = f"embedding {self.name!r}, {field}"
                object.__setattr__(self, field, expression(where, value, (d, V), "theory.notation"))
        if not isinstance(self.layer_norm, bool):
            raise ValueError(f"embedding {self.name!r}, layer_norm: must be True or False, got {self.layer_norm!r}")
        if self.gradient_share.is_number and self.gradient_share > 1:
            raise ValueError(f"embedding {self.name!r}, gradient_share: must lie in (0, 1], got {self.gradient_share}")


_SNM = "arXiv 2312.16903"

EMBEDDINGS = {
    method.name: method
    for method in (
        Embedding("vanilla", source=_SNM),
        Embedding("scaled", multiplier=sp.sqrt(d), source=_SNM + ", after Vaswani et al., arXiv 1706.03762"),
        Embedding("layer_norm", layer_norm=True, source=_SNM + ", after BLOOM, arXiv 2211.05100"),
        Embedding(
            "detach",
            gradient_share=sp.Rational(1, 10),
            source=_SNM + ", after the gradient shrink of GLM-130B, arXiv 2210.02414",
        ),
        Embedding("unit", table_std=sp.Integer(1), source=_SNM + ": the initial standard deviation itself is 1"),
    )
}


def embedding(scheme: str | float | Embedding) -> Embedding:
    """The registered method of that name; a number is a multiplier; an `Embedding` is returned as it is."""
    if isinstance(scheme, int | float) and not isinstance(scheme, bool):
        return Embedding(f"times {scheme:g}", multiplier=sp.Float(scheme), source="a multiplier")
    if isinstance(scheme, str):
        try:
            number = float(scheme)
        except ValueError:
            pass
        else:
            return embedding(number)
    return lookup("embedding", scheme, EMBEDDINGS | {"a number (multiplier)": EMBEDDINGS["vanilla"]}, Embedding)
