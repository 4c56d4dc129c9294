"""Exact expectations of products of polynomials in independent Gaussians: what a derivation takes the mean over."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import sympy as sp


def mean_products(
    pairs: Sequence[tuple[sp.Expr, sp.Expr]], variances: Mapping[sp.Symbol, sp.Expr]
) -> tuple[sp.Expr, ...]:
    """E[f g] of each pair of polynomials, over independent Gaussian symbols of mean 0 and these variances.

    E[w^(2k)] = (2k - 1)!! variance^k; a product with an odd power has none. Other symbols are numbers. Raises
    ValueError where one is no polynomial.
    """
    gaussians = tuple(variances)
    symbols = {symbol for pair in pairs for polynomial in pair for symbol in polynomial.free_symbols}
    others = tuple(sorted(symbols - set(gaussians), key=str))
    ring = sp.polys.rings.PolyRing((*gaussians, *others), sp.QQ)
    numbers, count = sp.polys.rings.PolyRing(others, sp.QQ) if others else sp.QQ, len(gaussians)

    def by_parity(polynomial: sp.Expr) -> dict:
        """Coefficients by which Gaussians have an odd power, then by all powers."""
        found: dict = defaultdict(lambda: defaultdict(lambda: numbers.zero))
        for powers, coefficient in ring.from_expr(polynomial).terms():
            term = numbers({powers[count:]: coefficient}) if others else coefficient
            found[tuple(k % 2 for k in powers[:count])][powers[:count]] += term
        return found

    return tuple(_paired(by_parity(first), by_parity(second), variances) for first, second in pairs)


def _paired(first: dict, second: dict, variances: Mapping[sp.Symbol, sp.Expr]) -> sp.Expr:
    found: dict = {}
    for parity in first.keys() & second.keys():
        for powers, factor in first[parity].items():
            for others, other in second[parity].items():
                both = tuple(map(sum, zip(powers, others, strict=True)))
                found[both] = found.get(both, 0) + factor * other
    total = sp.S.Zero
    for powers, factor in found.items():
        moments = (w ** (k // 2) * sp.factorial2(k - 1) for w, k in zip(variances.values(), powers, strict=True) if k)
        total += (factor.as_expr() if hasattr(factor, "as_expr") else sp.sympify(factor)) * sp.prod(moments)
    return total
