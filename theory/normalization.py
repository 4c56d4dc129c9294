"""The Jacobians of LayerNorm and RMSNorm, and why their norm is exactly 1/sigma, at any width and any epsilon.

sigma times the Jacobian is an orthogonal projector (LayerNorm: rank d - 2, it forgets the mean and the scale) plus
epsilon/sigma^2 times another one. arXiv 2312.16903, appendix, drops z z^T/d as small; in operator norm it is not.
"""

from collections.abc import Iterator

import numpy as np
import sympy as sp

from theory import notation as s
from theory.derivation import Step, at, equation, topic
from theory.matrix_algebra import Norm, at_size

_IDENTITY = sp.Identity(s.d)
_ONE = sp.Identity(1)
_SOURCE = "arXiv 2312.16903, the LayerNorm Jacobian [secondary]; derived here"
_SHARE = s.epsilon / s.sigma**2  # what a norm keeps of a move along z

LAYER_NORM = (s.C - s.z * s.z.T / s.d) / s.sigma
RMS_NORM = (_IDENTITY - s.z * s.z.T / s.d) / s.sigma


@topic("The LayerNorm Jacobian and its norm 1/sigma")
def layer_norm_jacobian() -> tuple[Step, ...]:
    """LayerNorm is z = C x / sigma with sigma^2 = |C x|^2/d + epsilon. The argument holds for any d of at least 3."""
    ones = equation(s.e.T * s.e, s.d * _ONE)
    centering = equation(s.C, _IDENTITY - s.e * s.e.T / s.d)
    idempotent = equation(s.C * s.C, s.C)
    symmetric = equation(s.C.T, s.C)
    annihilates = equation(s.e.T * s.C, sp.ZeroMatrix(1, s.d))
    centred = equation(s.y, s.C * s.x)
    no_mean = equation(s.e.T * s.y, sp.ZeroMatrix(1, 1))
    stays = equation(s.y.T * s.C, s.y.T)
    opening = [
        Step(ones, "e is the vector of d ones", kind="given"),
        Step(centering, "definition: C takes the mean off", kind="given"),
        Step(idempotent, "centering twice is centering once", using=(ones, centering)),
        Step(symmetric, "C is symmetric, so an orthogonal projector", using=(centering,)),
        Step(annihilates, "a centred vector has mean 0", using=(ones, centering)),
        Step(centred, "definition: the centred token", kind="given"),
        Step(no_mean, "so y has mean 0", using=(annihilates, centred)),
        Step(stays, "and is left alone by C", using=(symmetric, idempotent, centred)),
    ]
    free = s.C - s.H
    return (
        *opening,
        *_common(s.C, LAYER_NORM, s.e * s.e.T / s.d, free, 2, (ones, centering, symmetric), stays, no_mean),
    )


@topic("The RMSNorm Jacobian and its norm 1/sigma")
def rms_norm_jacobian() -> tuple[Step, ...]:
    """RMSNorm is z = x / sigma with sigma^2 = |x|^2/d + epsilon: LayerNorm without centering, y = x and C = 1."""
    return tuple(_common(_IDENTITY, RMS_NORM, None, _IDENTITY - s.H, 1, (), None, None))


def _common(
    keep: sp.MatrixExpr,
    formula: sp.MatrixExpr,
    lost: sp.MatrixExpr | None,
    free: sp.MatrixExpr,
    codimension: int,
    facts: tuple[sp.Eq, ...],
    stays: sp.Eq | None,
    no_mean: sp.Eq | None,
) -> list[Step]:
    """The steps both norms share; `keep` is C or the identity, `codimension` the directions that are lost."""
    t, p, q, y_i, w_i = sp.symbols("t p q y_i w_i", real=True)
    centred = no_mean is not None
    squared = equation(s.y.T * s.y, s.d * (s.sigma**2 - s.epsilon) * _ONE)
    normed = equation(s.z, s.y / s.sigma)
    moved = sp.sqrt((s.d * (s.sigma**2 - s.epsilon) + 2 * t * p + t**2 * q) / s.d + s.epsilon)
    slope = equation(
        at(sp.Derivative((y_i + t * w_i) / moved, t), {t: 0}), w_i / s.sigma - y_i * p / (s.d * s.sigma**3)
    )
    kv = s.C * s.v if centred else s.v
    along = kv / s.sigma - s.y * s.y.T * kv / (s.d * s.sigma**3)
    read = equation(along, formula * s.v)
    jacobian = equation(s.J_norm, formula)
    length = equation(s.z.T * s.z, s.d * (1 - _SHARE) * _ONE)
    mean_z = equation(s.e.T * s.z, sp.ZeroMatrix(1, 1))
    scaled = equation(s.P, s.sigma * formula)
    onto_z = equation(s.H, s.z * s.z.T / (s.d * (1 - _SHARE)))
    complement = equation(s.Q, free)
    geometry = (*facts, length, *([mean_z] if centred else []))
    projectors = (complement, onto_z, *geometry)
    split = equation(s.P, s.Q + _SHARE * s.H)
    gap = equation(_IDENTITY - s.P.T * s.P, (1 - _SHARE**2) * s.H if lost is None else lost + (1 - _SHARE**2) * s.H)
    total = equation(s.sigma, sp.sqrt(s.sigma_x**2 + s.epsilon))
    norm_one = equation(Norm(s.P), 1)
    homogeneous = equation(Norm(s.J_norm), Norm(s.P) / s.sigma)
    steps = [
        Step(
            squared, f"definition of sigma: sigma^2 = |y|^2/d + epsilon{'' if centred else ', and y = x'}", kind="given"
        ),
        Step(normed, "definition: the norm returns z", kind="given"),
        Step(
            slope,
            "move x by t v, so y by t w with w = C v: |y|^2 becomes |y|^2 + 2 t p + t^2 q, p = y.w, q = w.w; "
            "coordinate i of z then changes at this rate"
            if centred
            else "move x by t v (w = v): |x|^2 becomes |x|^2 + 2 t p + t^2 q, p = x.v, q = v.v; coordinate i of z "
            "then changes at this rate",
            _SOURCE,
        ),
        Step(
            read,
            "the rate as a vector, with p = y^T w, is the matrix on the right times v",
            _SOURCE,
            using=(normed,) if stays is None else (normed, stays),
        ),
        Step(
            jacobian,
            "so this is the Jacobian; as a second proof every entry is differentiated at small d",
            _SOURCE,
            instances=lambda statement: _differentiated(statement, centred),
        ),
        Step(length, "z is d long, less epsilon's share", using=(normed, squared)),
    ]
    if centred:
        steps.append(Step(mean_z, "z has mean 0", using=(normed, no_mean)))
    almost = equation((s.z * s.z.T / s.d) * (s.z * s.z.T / s.d), (1 - _SHARE) * s.z * s.z.T / s.d)
    steps += [
        Step(
            almost,
            "z z^T/d is itself a projector where epsilon = 0, so its norm is 1 and it may not be dropped as small",
            "against the approximation in arXiv 2312.16903 [secondary]",
            using=(length,),
        ),
        Step(scaled, "definition: R is sigma times the Jacobian", kind="given"),
        Step(onto_z, "definition: H projects on z", kind="given"),
        Step(complement, "definition: Q projects on the rest", kind="given"),
        Step(equation(s.H * s.H, s.H), "H is idempotent", using=(onto_z, *geometry)),
        Step(equation(s.Q * s.Q, s.Q), "Q is idempotent", using=projectors),
        Step(equation(s.Q.T, s.Q), "and symmetric: an orthogonal projector", using=(complement, onto_z, *facts)),
        Step(equation(s.Q * s.H, sp.ZeroMatrix(s.d, s.d)), "orthogonal to H", using=projectors),
        Step(
            equation(sp.Trace(s.Q), s.d - codimension),
            f"its rank is its trace, d - {codimension}: " + ("mean and scale are lost" if centred else "the scale is"),
            using=projectors,
        ),
        Step(split, "R is Q, plus epsilon's share of H; where epsilon = 0 it is Q", using=(scaled, *projectors)),
        Step(total, "sigma_x is the stream's standard deviation, from which epsilon takes its share", kind="given"),
        Step(sp.Le(_SHARE, 1), "epsilon's share is at most 1", using=(total,)),
        Step(
            gap,
            "a sum of projectors with non-negative factors, so |R v| <= |v| for every v",
            using=(scaled, onto_z, *geometry),
        ),
        Step(
            equation(s.P * s.Q, s.Q),
            f"and |R v| = |v| for every v in the range of Q, which is not empty from d = {codimension + 1} on",
            using=(scaled, *projectors),
        ),
        Step(
            norm_one,
            "the two previous steps, read as norms: 1 - R^T R >= 0 means |R| <= 1, a fixed direction |R| >= 1",
            "Horn and Johnson, Matrix Analysis, section 7.7",
            kind="cited",
            trial=lambda: _singular_values(formula, centred),
        ),
        Step(homogeneous, "a norm is homogeneous", kind="given"),
        Step(
            equation(Norm(s.J_norm), 1 / s.sigma),
            "the Jacobian's norm is exactly 1/sigma",
            _SOURCE,
            using=(homogeneous, norm_one),
        ),
    ]
    return steps


def _explicit(size: int, centred: bool) -> tuple[sp.Matrix, sp.Matrix, sp.Expr]:
    """x, y and sigma squared in the coordinates of x, at a concrete width."""
    coordinates = sp.Matrix(sp.symbols(f"x_1:{size + 1}", real=True))
    y = coordinates - sp.ones(size, 1) * sum(coordinates) / size if centred else coordinates
    return coordinates, y, (y.T * y)[0] / size + s.epsilon


def _differentiated(statement: sp.Eq, centred: bool) -> Iterator[tuple[sp.Eq, str]]:
    """dz_i/dx_j by differentiation, times sigma^3, against the statement's right side, at d = 3, 4, 5."""
    r = s.sigma
    for size in (3, 4, 5):
        coordinates, y, square = _explicit(size, centred)
        slopes = (y / sp.sqrt(square)).jacobian(coordinates)
        explicit = slopes.replace(lambda f, q=square: f.is_Pow and f.base == q, lambda f: r ** (2 * f.exp))
        ones = sp.ones(size, 1)
        values = {s.d: sp.Integer(size), s.z: y / r, s.e: ones, s.C: sp.eye(size) - ones * ones.T / size}
        formula = at_size(statement.rhs, values, size)
        yield equation(sp.ImmutableMatrix(explicit), sp.ImmutableMatrix(formula)), f"d = {size}"


def _singular_values(formula: sp.MatrixExpr, centred: bool) -> tuple[bool, str]:
    """The largest singular value of R at random x, against 1."""
    draw = np.random.default_rng(20231216)
    worst = 0.0
    for size in (3, 5, 16):
        for epsilon in (0.0, 0.3):
            x = draw.normal(size=(size, 1))
            y = x - x.mean() if centred else x
            sigma = float(np.sqrt((y**2).mean() + epsilon))
            keep = np.eye(size) - (1 / size if centred else 0.0)
            scaled = keep - (y / sigma) @ (y / sigma).T / size
            worst = max(worst, abs(float(np.linalg.norm(scaled, 2)) - 1))
    return worst < 1e-12, f"singular values at 6 random x, d = 3, 5, 16, epsilon = 0, 0.3 (off by {worst:.0e})"
