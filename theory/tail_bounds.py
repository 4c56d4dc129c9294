"""What a Gaussian matrix, vector or walk does at worst when it may fail with probability delta only.

The picture: a share delta of the probability is set aside for every event that is used; by the union bound all hold
together. t = sqrt(2 log(1/delta)) standard deviations are what one event costs.

A Gaussian that is cut off is a 1-Lipschitz function of the one it was (Caffarelli 2000), so that lengths and norms
stray from their means as under that one, though the means are those of what is left.
"""

from dataclasses import dataclass

import numpy as np
import sympy as sp

from theory import notation as s
from theory.derivation import Step, equation, topic
from theory.matrix_algebra import Norm


@dataclass(frozen=True)
class Tail:
    """The tails at one failure probability, delta in (0, 1/2), of entries with standard deviation 1.

    nominal: standard deviation that the Gaussian had before it was cut off; 1: it is whole.
    """

    delta: float
    nominal: float = 1.0

    @property
    def t(self) -> float:
        """Beyond this lies one entry, or a fixed combination of unit length, with probability at most delta."""
        return self.nominal * float(np.sqrt(2 * np.log(1 / self.delta)))

    def matrix(self, std: float, rows: int, columns: int) -> float:
        """No larger is the spectral norm of a Gaussian matrix (Davidson and Szarek 2001, theorem II.13).

        Nor that of one cut off: its mean is no larger than the whole one's (Ledoux and Talagrand 1991, theorem 4.4).
        """
        return std * (self.nominal * (np.sqrt(rows) + np.sqrt(columns)) + self.t)

    def longest(self, size: int) -> float:
        """No longer is a vector of such entries: its mean, at most sqrt(size), and t, as a length is 1-Lipschitz."""
        return float(np.sqrt(size) + self.t)

    def shortest(self, size: int) -> float:
        """No shorter is such a vector: the quantile of chi-square, which holds with any mean too.

        Cut off: sqrt(size - nominal^2), which is below its mean by Poincare's inequality, less t.
        """
        from scipy.special import gammaincinv

        if self.nominal != 1:
            return max(float(np.sqrt(max(size - self.nominal**2, 0))) - self.t, 0.0)
        return float(np.sqrt(2 * gammaincinv(size / 2, self.delta)))

    def sine(self, size: int) -> float:
        """|x + s g| is no shorter than this times |x|, for every s >= 0 at once: the sine of the angle to -x."""
        from scipy.special import betaincinv

        if size == 1:
            return 0.0
        if self.nominal != 1:
            return self.shortest(size - 1) / self.longest(size)
        return float(np.sqrt(betaincinv((size - 1) / 2, 0.5, 2 * self.delta)))


@topic("Tails of Gaussian matrices, lengths and walks")
def tail_bounds() -> tuple[Step, ...]:
    """The events of the high-probability bound. A residual stream is a walk: given the past, a sub-layer's output is
    Gaussian, as its last matrix is independent of all before, so each step is s g with s fixed by the past."""
    events, t = sp.Symbol("E", positive=True), sp.Symbol("t", positive=True)
    p = sp.Symbol("p_fail", positive=True)
    m, step, a = sp.Symbol("m", positive=True), sp.Symbol("r", real=True), sp.Symbol("g_1", real=True)
    c = sp.Symbol("c_perp", positive=True)
    margin = equation(t, sp.sqrt(2 * sp.log(events / p)))
    rate, spread = sp.Symbol("lambda", positive=True), sp.Symbol("R", positive=True)
    best = equation(rate, t / spread)
    frobenius, rank, angle, slope = sp.symbols("F_W r_W cos_1 F'", positive=True)
    return (
        Step(
            sp.Le(Norm(s.W_1), s.sigma_1 * (sp.sqrt(s.d_ff) + sp.sqrt(s.d) + t)),
            "but for a probability of exp(-t^2/2)",
            "Davidson and Szarek 2001, theorem II.13",
            kind="cited",
            trial=_matrices,
        ),
        Step(margin, "definition: E events share the failure probability equally", kind="given"),
        Step(equation(events * sp.exp(-(t**2) / 2), p), "union bound: all hold but for p_fail", using=(margin,)),
        Step(
            equation(
                (m + step * a) ** 2 + step**2 * c - m**2 * c / (a**2 + c),
                (a**2 + c) * (step + m * a / (a**2 + c)) ** 2,
            ),
            "a stream of length m moved by r g, g_1 along it and c_perp the square of the rest: its square is never "
            "below m^2 c_perp/(g_1^2 + c_perp), whatever r, the square of m times the sine of g's angle",
        ),
        Step(
            sp.Ge(Norm(s.W_1) ** 2, frobenius**2 / rank),
            "the Frobenius norm's square sums r_W = min(m, n) squared singular values at most; it is a chi-square of "
            "m n degrees, whose lower tail bounds what sigma-reparametrisation divides by",
            "Horn and Johnson, Matrix Analysis, section 5.6",
            kind="cited",
            trial=_frobenius,
        ),
        Step(
            sp.Le(slope, 1),
            "a Gaussian cut off at c is F(g) = Phi^{-1}(1/2 + (Phi(g) - 1/2) (2 Phi(c) - 1)), of slope F' at most 1, "
            "so that lengths and norms of such entries, Lipschitz functions of g, stray by t as under the whole one",
            "Caffarelli 2000, Monotonicity properties of optimal transportation; in one dimension, as here, by trial",
            kind="cited",
            trial=_cut_off,
        ),
        Step(
            sp.Le(angle, t / sp.sqrt(s.d_head)),
            "the cosine of a random direction to a fixed one, but for a probability of exp(-t^2/2): logits of normed "
            "queries",
            "Ball 1997, An Elementary Introduction to Modern Convex Geometry, lemma 2.2",
            kind="cited",
            trial=_directions,
        ),
        Step(best, "the rate that serves best", kind="given"),
        Step(
            equation(-rate * t * spread + rate**2 * spread**2 / 2, -(t**2) / 2),
            "along its first direction the stream moves by a martingale of Gaussian steps whose squares sum to at most "
            "R^2; exp(lambda walk - lambda^2 R^2/2) is a supermartingale, so it falls by t R with probability "
            "exp(-t^2/2) at most",
            "Freedman 1975; Chernoff's bound",
            using=(best,),
        ),
    )


def _matrices() -> tuple[bool, str]:
    draw, tail = np.random.default_rng(20231216), Tail(0.1)
    above = np.mean([np.linalg.norm(draw.normal(size=(16, 24)), 2) > tail.matrix(1, 16, 24) for _ in range(200)])
    return bool(above <= 0.1), f"200 draws of 16 x 24 at delta = 0.1 ({above:.3f} above)"


def _frobenius() -> tuple[bool, str]:
    draw = np.random.default_rng(20231216)
    least = 2.0
    for shape in ((8, 8), (8, 32), (1, 16)):
        w = draw.normal(size=shape)
        least = min(least, float(np.linalg.norm(w, 2) * np.sqrt(min(shape)) / np.linalg.norm(w)))
    return least >= 1 - 1e-12, f"3 draws (at least {least:.3f} of the bound)"


def _cut_off() -> tuple[bool, str]:
    from scipy.special import ndtr, ndtri

    g, steepest = np.linspace(-6, 6, 4001), 0.0
    for cutoff in (0.5, 2.0, 3.0):
        share = 2 * ndtr(cutoff) - 1
        steepest = max(steepest, float(np.max(np.diff(ndtri(0.5 + (ndtr(g) - 0.5) * share)) / np.diff(g))))
    return steepest <= 1, f"4000 differences at cut-offs 0.5, 2, 3 (steepest {steepest:.3f})"


def _directions() -> tuple[bool, str]:
    draw, tail = np.random.default_rng(20231216), Tail(0.1)
    directions = draw.normal(size=(4000, 8))
    above = np.mean(directions[:, 0] / np.linalg.norm(directions, axis=1) > tail.t / np.sqrt(8))
    return bool(above <= 0.1), f"4000 draws of 8 coordinates at delta = 0.1 ({above:.3f} above)"
