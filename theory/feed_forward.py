"""The feed-forward bound 1 + Lambda_F sigma_1 sigma_2 C_ffn / sigma, C_ffn = (sqrt d + sqrt d_ff)^2.

arXiv 2312.16903, equation 15 [secondary], leaves the activation's Lipschitz constant out, which is right for ReLU;
GELU's is 1.129. The picture: two Gaussian matrices, each as long as its norm allows, behind a norm that divides.
"""

from functools import lru_cache

import numpy as np
import sympy as sp

from theory import notation as s
from theory.activation import ACTIVATIONS, Activation, activation, u
from theory.derivation import Step, at, equation, topic
from theory.matrix_algebra import Norm

SNM = "arXiv 2312.16903"
ROOT = sp.sqrt(s.sigma_y**2 + s.epsilon)
CONSTANT = (sp.sqrt(s.d) + sp.sqrt(s.d_ff)) ** 2
EXCESS = s.lipschitz * s.sigma_1 * s.sigma_2 * CONSTANT / ROOT
PAPER_EXCESS = EXCESS.subs({s.epsilon: 0, s.lipschitz: 1})


def gaussian_norm(matrix: sp.MatrixExpr, std: sp.Expr, rows: sp.Expr, cols: sp.Expr) -> Step:
    """The cited step ‖W‖ <= std (sqrt rows + sqrt cols) for a Gaussian matrix, in expectation (SNM-2)."""
    return Step(
        sp.Le(Norm(matrix), std * (sp.sqrt(rows) + sp.sqrt(cols))),
        "the norm of a matrix of independent Gaussian entries, in expectation; it fluctuates by about one std",
        "Gordon 1985; Davidson and Szarek 2001, theorem II.13",
        kind="cited",
        trial=_gaussian_trial,
    )


@lru_cache(maxsize=1)
def _gaussian_trial() -> tuple[bool, str]:
    draw = np.random.default_rng(20231216)
    ratios = []
    for rows, cols in ((16, 16), (16, 64), (64, 64), (64, 256)):
        norms = [np.linalg.norm(draw.normal(size=(rows, cols)), 2) for _ in range(20)]
        ratios.append(float(np.mean(norms)) / (rows**0.5 + cols**0.5))
    return max(ratios) <= 1, f"means of 20 draws at 4 sizes ({min(ratios):.3f} to {max(ratios):.3f} of the bound)"


@topic("The feed-forward sub-layer's Jacobian bound")
def feed_forward_bound() -> tuple[Step, ...]:
    """y = x' + W_2 F(W_1 LN(x')). Exact but for the two Gaussian norms, which hold in expectation at initialisation."""
    up = gaussian_norm(s.W_1, s.sigma_1, s.d_ff, s.d)
    down = gaussian_norm(s.W_2, s.sigma_2, s.d, s.d_ff)
    jacobian = equation(s.J_ffn, sp.Identity(s.d) + s.W_2 * s.D_F * s.W_1 * s.J_norm)
    split = sp.Le(Norm(s.J_ffn), 1 + Norm(s.W_2) * Norm(s.D_F) * Norm(s.W_1) * Norm(s.J_norm))
    slope = sp.Le(Norm(s.D_F), s.lipschitz)
    norm = equation(Norm(s.J_norm), 1 / s.sigma)
    total = equation(s.sigma, ROOT)
    constant = equation(s.C_ffn, CONSTANT)
    with_constant = 1 + s.lipschitz * s.sigma_1 * s.sigma_2 * s.C_ffn / ROOT
    bound = sp.Le(Norm(s.J_ffn), with_constant)
    ratio = equation(at(CONSTANT, {s.d_ff: 4 * s.d}), 9 * s.d)
    paper = equation(at(with_constant, {s.epsilon: 0, s.lipschitz: 1}), 1 + s.sigma_1 * s.sigma_2 * s.C_ffn / s.sigma_y)
    return (
        Step(
            jacobian,
            "chain rule, D_F the diagonal of F'(W_1 z); checked by differentiation with F(u) = u^2",
            SNM + ", equation 15 [secondary]",
            instances=_chain_rule,
        ),
        Step(
            split,
            "triangle inequality and ‖A B‖ <= ‖A‖ ‖B‖",
            "Horn and Johnson, Matrix Analysis, section 5.6",
            kind="cited",
            using=(jacobian,),
        ),
        Step(slope, "D_F is diagonal, its entries are values of F'", kind="given"),
        Step(norm, "the norm's Jacobian, LayerNorm or RMSNorm", "layer_norm_jacobian", kind="lemma"),
        Step(total, "sigma_x' is the stream's standard deviation, to which the norm adds epsilon", kind="given"),
        up,
        down,
        Step(constant, "definition", SNM + ", equation 15 [secondary]", kind="given"),
        Step(paper, "at epsilon = 0 and Lipschitz constant 1 the right side below is the paper's form", SNM),
        Step(ratio, "at the usual d_ff = 4 d the constant is 9 d"),
        Step(
            bound,
            "every factor at its largest",
            "this derivation; " + SNM + ", equation 15 [secondary] for ReLU",
            using=(norm, total, constant, split, slope, up.statement, down.statement),
        ),
    )


def _chain_rule(statement: sp.Eq) -> list[tuple[sp.Eq, str]]:
    """The statement's right side against differentiation, F(u) = u^2, RMSNorm, at small widths and whole numbers."""
    found = []
    for width, inner in ((3, 2), (2, 4)):
        x = sp.Matrix(sp.symbols(f"x_1:{width + 1}", real=True))
        squares = sp.Integer(width * (width + 1) * (2 * width + 1) // 6)
        root = sp.sqrt((x.T * x)[0] / width + 9 - squares / width)  # epsilon such that sigma = 3 at the point below
        up = sp.Matrix(inner, width, lambda i, j: (i + 2 * j) % 5 - 2)
        down = sp.Matrix(width, inner, lambda i, j: (3 * i - j) % 4 - 1)
        point = dict(zip(x, range(1, width + 1), strict=True))
        hidden = up * (x / root)
        explicit = (x + down * hidden.applyfunc(lambda a: a**2)).jacobian(x).subs(point)
        values = {
            s.W_1: up,
            s.W_2: down,
            s.D_F: sp.diag(*(2 * hidden).subs(point)),
            s.J_norm: (x / root).jacobian(x).subs(point),
        }
        right = sp.zeros(width, width)
        for term in statement.rhs.args:
            product = sp.eye(width)
            for factor in term.args if isinstance(term, sp.MatMul) else ():
                product = product * values[factor] if factor in values else product * factor
            right += product
        found.append(
            (
                equation(sp.ImmutableMatrix(explicit), sp.ImmutableMatrix(right)),
                f"d = {width}, d_ff = {inner}",
            )
        )
    return found


@topic("The Lipschitz constants of the activations")
def activation_lipschitz() -> tuple[Step, ...]:
    """Lambda_F = sup |F'| is attained where F'' = 0. ReLU and identity: 1. GELU: exact, at u = sqrt 2."""
    steps = [
        Step(equation(sp.Derivative(u, u), 1), "the identity, and ReLU where it is not flat, have slope 1"),
    ]
    gelu = ACTIVATIONS["gelu"]
    second = (2 - u**2) * sp.exp(-(u**2) / 2) / sp.sqrt(2 * sp.pi)
    steps += [
        Step(
            equation(sp.Derivative(gelu.function, (u, 2)), second),
            "GELU's slope is stationary at u = +-sqrt 2 and nowhere else",
            gelu.source,
        ),
        Step(
            equation(
                at(sp.Derivative(gelu.function, u), {u: sp.sqrt(2)}),
                (1 + sp.erf(1)) / 2 + sp.exp(-1) / sp.sqrt(sp.pi),
            ),
            "its value there is 1.1289...; at -sqrt 2 it is 1 less this, at the ends 0 and 1",
            gelu.source,
        ),
    ]
    for name in ("gelu_tanh", "silu"):
        scheme = ACTIVATIONS[name]
        largest = sp.Rational(str(round(lipschitz(scheme) + 5e-7, 6)))
        where = sp.Rational(str(round(_steepest(scheme), 6)))
        steps += [
            Step(
                sp.Le(scheme.derivative, largest),
                f"{name}: the largest slope, found on a grid and refined, rounded up",
                scheme.source,
            ),
            Step(
                sp.Ge(at(sp.Derivative(scheme.function, u), {u: where}), largest - sp.Rational(1, 10**6)),
                f"{name}: and it is reached to 1e-6, so no smaller constant would do",
                scheme.source,
            ),
        ]
    return tuple(steps)


@lru_cache(maxsize=64)
def lipschitz(scheme: str | Activation) -> float:
    """sup |F'(u)| of an activation: the largest value on a grid over [-40, 40], refined.

    Raises ValueError for an activation whose slope still grows at the ends of the grid, so that it has no bound.
    """
    scheme = activation(scheme)
    return float(abs(scheme.numeric[1](np.array([_steepest(scheme)]))[0]))


def _steepest(scheme: Activation) -> float:
    """Where |F'| is largest: the best point of a grid, refined by thirds."""
    slope = scheme.numeric[1]
    grid = np.linspace(-40, 40, 16001)
    slopes = np.abs(slope(grid))
    at = int(np.argmax(slopes))
    if slopes[at] > slopes[2000:14001].max() * (1 + 1e-4):  # of a periodic one the grid misses the peaks
        raise ValueError(f"activation: the slope of {scheme.name!r} grows without bound; choose a Lipschitz activation")
    low, high = float(grid[max(at - 1, 0)]), float(grid[min(at + 1, len(grid) - 1)])
    for _ in range(60):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        first, second = np.abs(slope(np.array([left, right])))
        low, high = (left, high) if first < second else (low, right)
    refined = (low + high) / 2
    return refined if abs(slope(np.array([refined]))[0]) > slopes[at] else float(grid[at])
