"""Residual arrangements: where a block has its norms, and what its shortcut and its branches are multiplied by.

One residual addition is x' = post(a x + b out(f(pre(x)))), f attention or the feed-forward, each of the three norms
there or not; a parallel block adds both at once, from one pre. Factors are expressions in N, and b also in n.
"""

from dataclasses import dataclass

import sympy as sp

from theory.notation import N, layer
from theory.schemes import expression, lookup

PARTS = ("attention", "feed_forward")


@dataclass(frozen=True)
class Block:
    """One arrangement. Raises ValueError for a factor with other symbols than N and n, or for one that is no rule.

    pre_norm, output_norm, post_norm: on the sub-layer's input, on its output, on the sum. inner_norm: before the
    sub-layer's last matrix. final_norm: before the head. parallel: attention and feed-forward in one addition.
    shortcut: the factor a. branch: the factor b; `learned` says whether it is a parameter that starts there, one
    number a sub-layer ("scalar") or one a coordinate ("vector"). input: factor on the pre-norm's output.
    """

    name: str
    pre_norm: bool = True
    output_norm: bool = False
    post_norm: bool = False
    inner_norm: bool = False
    final_norm: bool = True
    parallel: bool = False
    shortcut: sp.Expr = sp.S.One
    branch: sp.Expr = sp.S.One
    input: sp.Expr = sp.S.One
    learned: str | None = None
    source: str = "the user's own"

    def __post_init__(self) -> None:
        for field in ("pre_norm", "output_norm", "post_norm", "inner_norm", "final_norm", "parallel"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"block {self.name!r}, {field}: must be True or False, got {getattr(self, field)!r}")
        if self.learned not in (None, "scalar", "vector"):
            raise ValueError(
                f"block {self.name!r}, learned: unknown value {self.learned!r}; choose one of None, scalar, vector"
            )
        for field in ("shortcut", "branch", "input"):
            where = f"block {self.name!r}, {field}"
            rule = expression(where, getattr(self, field), (N, layer), "theory.notation", positive=False)
            if rule.is_negative or (field != "branch" and rule.is_zero):
                least = "not negative" if field == "branch" else "positive"
                raise ValueError(f"{where}: must be {least}, got {rule}")
            object.__setattr__(self, field, rule)

    @property
    def last_norm(self) -> bool:
        """Whether the head reads the stream through a norm, of its own or of the last sum."""
        return self.final_norm or self.post_norm

    @property
    def additions(self) -> tuple[tuple[str, ...], ...]:
        """The sub-layers that each of the block's residual additions takes together."""
        return (PARTS,) if self.parallel else tuple((part,) for part in PARTS)


BLOCKS = {
    block.name: block
    for block in (
        Block("pre_ln", source="Xiong et al., arXiv 2002.04745: x + f(LN(x))"),
        Block("post_ln", pre_norm=False, post_norm=True, final_norm=False, source="Vaswani et al., arXiv 1706.03762"),
        Block("parallel", parallel=True, source="PaLM, arXiv 2204.02311: x + Attn(LN x) + FFN(LN x), after GPT-J"),
        Block("sandwich", output_norm=True, source="CogView, arXiv 2105.13290; peri-LN, arXiv 2502.02732"),
        Block("output_norm", pre_norm=False, output_norm=True, source="OLMo 2, arXiv 2501.00656: x + norm(f(x))"),
        Block(
            "deepnorm", pre_norm=False, post_norm=True, final_norm=False, shortcut=(2 * N) ** sp.Rational(1, 4),
            source="Wang et al., arXiv 2203.00555, decoder only: LN(a x + f(x)), a = (2N)^(1/4)",
        ),
        Block(
            "rezero", pre_norm=False, final_norm=False, branch=sp.S.Zero, learned="scalar",
            source="Bachlechner et al., arXiv 2003.04887: x + b f(x), b = 0 at the start, no norms",
        ),
        Block(
            "layer_scale", branch=sp.Rational(1, 10), learned="vector",
            source="Touvron et al., arXiv 2103.17239: x + b f(LN(x)); b = 0.1 at the start up to 18 layers",
        ),
        Block(
            "ln_scaling", input=1 / sp.sqrt(layer),
            source="Sun et al., arXiv 2502.05795: the norm's output over the root of the layer's number",
        ),
        Block(
            "deep_scale_lm", shortcut=sp.sqrt(1 - 1 / (2 * N)), branch=1 / sp.sqrt(2 * N),
            source="Kedia et al., arXiv 2403.09635: a^2 + b^2 = 1, b^2 of order 1 / N; here 1 / (2N) [secondary]",
        ),
        Block(
            "depth_mup", branch=1 / sp.sqrt(N),
            source="Yang et al., arXiv 2310.02244 [M]: branches over sqrt N; a factor, so that it scales updates too",
        ),
        Block(
            "deepnorm_glm", pre_norm=False, post_norm=True, final_norm=False, shortcut=sp.sqrt(2 * N),
            source="GLM-130B, arXiv 2210.02414 [P]: LN(a x + f(x)), a = (2N)^(1/2)",
        ),
        Block("sub_ln", inner_norm=True, source="Magneto, arXiv 2210.06423: a second norm before each output matrix"),
        Block("no_norm", pre_norm=False, final_norm=False, source="x + f(x) without norms, the setting of Fixup"),
    )
}  # fmt: skip


def block(scheme: str | Block) -> Block:
    """The registered arrangement of that name; a `Block` is returned as it is."""
    return lookup("block", scheme, BLOCKS, Block)
