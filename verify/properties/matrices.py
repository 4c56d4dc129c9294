"""Properties of the weights that a scheme draws: their size and law, and that nothing in them depends on anything else.

Every test has an exact or conservative probability of a false alarm for independent Gaussian entries, and a smaller one
for entries with lighter tails (cut off, uniform). Of each matrix so many copies are drawn, each with a key of its own,
that a tiny one is tested as sharply as a large one: the smallest architecture that fails is where the fault is visible
at all, not where there happen to be enough numbers.
"""

import re
from collections.abc import Iterator
from functools import lru_cache, wraps
from math import ceil, sqrt
from typing import Any

import jax
import numpy as np
import sympy as sp
from hypothesis import strategies as st
from scipy import stats

from theory import Architecture
from theory import notation as s
from theory.gaussian_norm import gaussian_norm
from theory.initialization import MATRIX_KINDS, truncated_std
from theory.tail_bounds import Tail
from verify.measurement.measure import QUICK
from verify.properties.property import Finding, Limits, NotApplicable, Property, Test
from verify.properties.scheme import Scheme, drawn_by
from verify.properties.strategies import architectures

ENTRIES = 16_384
MOST = 2**25
_SVDS, _PAIRED = 32, 2048  # matrices, rows or columns that are looked at, at most
_TOPICS = {"embedding": "embedding_stds", "position": "embedding_stds", "head": "last_norm_gradient"} | {
    kind: "attention_bound" if kind.startswith("attention") else "feed_forward_bound"
    for kind in MATRIX_KINDS
    if "." in kind
}


def _shapes(scheme: Scheme, held: dict[str, Any]) -> st.SearchStrategy[Architecture]:
    """Every matrix there is; what does not change one stays at its default.

    A tied table is one that code likes to treat by itself; a model of one's own has one or not, whatever is asked for.
    """
    plain: dict[str, Any] = {
        "block": "pre_ln", "norm": "rms_norm", "activation": "swiglu", "positions": "learned", "attention": "standard",
        "initialization": "small", "embedding": "vanilla", "bias": False, "tied": [False, scheme.ours],
    }  # fmt: skip
    return architectures(**plain | dict(scheme.fields) | held)


@lru_cache(maxsize=16)
def drawn(scheme: Scheme, arch: Architecture, seed: int) -> dict[str, np.ndarray]:
    """Weights by kind, float64[copies, layers, fan_in, fan_out]: two copies, or as many as give ENTRIES of each."""
    shapes = jax.eval_shape(lambda key: scheme.matrices(scheme.init(key, arch)), jax.random.key(0))
    sizes = [shape.shape[-2] * shape.shape[-1] for shape in shapes.values()]
    copies = max(2, min(ceil(ENTRIES / min(sizes)), MOST // sum(sizes)))
    found = jax.device_get(_program(scheme, arch)(jax.random.split(jax.random.key(seed), copies)))
    weights = {kind: np.asarray(weight, np.float64) for kind, weight in found.items()}
    if scheme.named:
        return weights
    varying = {kind: weight for kind, weight in weights.items() if np.ptp(weight)}  # no scales of norms, and the like
    if not varying:
        raise NotApplicable("no leaf of two or three axes that is not constant; name weights with matrices=")
    return varying


@lru_cache(maxsize=64)
def _program(scheme: Scheme, arch: Architecture) -> Any:
    return jax.jit(jax.vmap(lambda key: scheme.matrices(scheme.init(key, arch))), compiler_options=QUICK)


def _layers(weights: dict[str, np.ndarray]) -> Iterator[tuple[str, int, np.ndarray, str]]:
    """(kind, layer, float64[copies, fan_in, fan_out], what a person calls it)."""
    for kind, weight in weights.items():
        for layer in range(weight.shape[1]):
            name = f"{kind}, layer {layer + 1} of {weight.shape[1]}" if weight.shape[1] > 1 else kind
            yield kind, layer, weight[:, layer], name


def _tested(weights: dict[str, np.ndarray]) -> list[tuple[str, int, np.ndarray, str]]:
    """`_layers` that are not all zero. Raises NotApplicable where there is none."""
    found = [each for each in _layers(weights) if each[2].any()]
    if not found:
        raise NotApplicable("all entries are zero")
    return found


def _count(weights: dict[str, np.ndarray]) -> int:
    return sum(weight.shape[1] for weight in weights.values())


def _std(arch: Architecture, kind: str, layer: int, shape: tuple[int, ...], blocks: sp.Rational | None = None) -> float:
    """What the architecture's rule says of a matrix of that kind and shape in that layer, counted from 0.

    blocks: N, if not the architecture's.
    """
    sizes = dict(zip((s.fan_in, s.fan_out), shape[-2:], strict=True))
    sizes |= {s.d: arch.d_model, s.V: arch.vocab_size, s.N: blocks or arch.num_layers, s.layer: layer + 1}
    return float(arch.rule(kind).subs(sizes))


def _of_finite(test: Test) -> Test:
    """The test, of weights that are numbers at all."""

    @wraps(test)
    def checked(scheme: Scheme, arch: Architecture, seed: int, alpha: float, limits: Limits) -> Finding | None:
        for kind, weight in drawn(scheme, arch, seed).items():
            if lost := int(np.sum(~np.isfinite(weight))):
                return Finding(f"entries of {kind} that are not finite", lost, -np.inf, 0, _topic(kind))
        return test(scheme, arch, seed, alpha, limits)

    return checked


def _topic(kind: str) -> str:
    """The derivation that a kind's size enters; none knows a matrix of another name."""
    return _TOPICS.get(kind, "")


def _worst(findings: Iterator[Finding]) -> Finding | None:
    """The one that is furthest outside, as a ratio."""

    def excess(finding: Finding) -> float:
        if not np.isfinite(finding.measured):
            return np.inf
        over = finding.measured / finding.high if finding.high > 0 else np.inf
        under = finding.low / finding.measured if finding.measured > 0 else np.inf
        return max(over, under if finding.low > 0 else 0.0)

    return max(findings, key=excess, default=None)


@_of_finite
def declared_std(scheme: Scheme, arch: Architecture, seed: int, alpha: float, limits: Limits) -> Finding | None:
    """Test of `declared_std`."""
    weights = drawn(scheme, arch, seed)
    share = alpha / _count(weights) / 2
    if not set(weights) & set(MATRIX_KINDS):
        raise NotApplicable(f"no matrix has the name of a kind that the rule knows: {', '.join(weights)}")

    def failing() -> Iterator[Finding]:
        for kind, layer, values, name in _layers(weights):
            if kind not in MATRIX_KINDS:
                continue
            std = _std(arch, kind, layer, values.shape)
            low, high = (std * sqrt(stats.chi2.ppf(q, values.size) / values.size) for q in (share, 1 - share))
            measured = sqrt(np.mean(np.square(values)))
            if not low <= measured * (1 + 1e-6) or not measured * (1 - 1e-6) <= high:
                hint = _explained(measured, std, kind, layer, values.shape, arch)
                yield Finding(f"standard deviation of {name}", measured, low, high, _topic(kind), hint)

    return _worst(failing())


def _explained(measured: float, std: float, kind: str, layer: int, shape: tuple[int, ...], arch: Architecture) -> str:
    """The known mistake that would give this value, if there is one."""
    if not std:
        return "declared 0"
    rows, columns = shape[-2:]
    mistakes = {
        "fan_in and fan_out were swapped": _std(arch, kind, layer, (columns, rows)),
        "the layers counted as inputs": _std(arch, kind, layer, (rows * arch.num_layers, columns * arch.num_layers)),
        "it were the variance": std**2,
    }
    if s.N in arch.rule(kind).free_symbols:
        for factor in (1, 2, 8, 9):  # of N in the depth factors that there are
            without = _std(arch, kind, layer, shape, sp.Rational(1, factor))
            mistakes[f"the factor of {factor} N blocks were missing"] = without
    cutoff = arch.truncation(kind)
    if cutoff is not None:
        mistakes["it were cut off and not corrected for that"] = std * float(truncated_std(cutoff))
    for mistake, expected in mistakes.items():
        if abs(expected / std - 1) > 0.02 and abs(measured / expected - 1) < 0.02:
            return f"as if {mistake}"
    return f"{measured / std:.3g} times the declared {std:.4g}"


@_of_finite
def zero_mean(scheme: Scheme, arch: Architecture, seed: int, alpha: float, limits: Limits) -> Finding | None:
    """Test of `zero_mean`, in standard deviations of an entry."""
    weights = drawn(scheme, arch, seed)
    share = alpha / _count(weights) / 2

    def failing() -> Iterator[Finding]:
        for kind, _, values, name in _tested(weights):
            if not np.ptp(values):
                what = f"mean of {name}, whose entries are all the same"
                yield Finding(what, float(values.flat[0]), 0, 0, _topic(kind))
                continue
            std, limit = values.std(), float(stats.t.isf(share, values.size - 1)) / sqrt(values.size)
            if abs(values.mean() / std) > limit:
                what = f"mean of {name}, in standard deviations"
                yield Finding(what, float(values.mean() / std), -limit, limit, _topic(kind))

    return next(failing(), None)


_JAX_CUTOFF = 2.0
"""nominal standard deviations at which jax.nn.initializers cut a normal law off"""


@_of_finite
def distribution(scheme: Scheme, arch: Architecture, seed: int, alpha: float, limits: Limits) -> Finding | None:
    """Test of `distribution`: Kolmogorov and Smirnov's distance to the declared law."""
    weights = drawn(scheme, arch, seed)
    share = alpha / _count(weights)

    def failing() -> Iterator[Finding]:
        for kind, layer, values, name in _tested(weights):
            std = values.std()
            known = scheme.declared is not None and kind in MATRIX_KINDS
            if known:
                std = _std(arch, kind, layer, values.shape)
            if not std:
                continue
            law = stats.norm(scale=std)
            cutoff = arch.truncation(kind) if known else None
            if scheme.distribution == "truncated_normal":
                cutoff = cutoff or _JAX_CUTOFF
            if cutoff is not None:
                law = stats.truncnorm(-cutoff, cutoff, scale=std / float(truncated_std(cutoff)))
            elif scheme.distribution == "uniform":
                law = stats.uniform(-sqrt(3) * std, 2 * sqrt(3) * std)
            some = values.ravel()[: 2 * ENTRIES]
            found = stats.kstest(some, law.cdf)
            if found.pvalue < share:
                limit = float(stats.kstwo.isf(share, some.size))
                what = f"distance of {name} from the declared {scheme.distribution} law"
                yield Finding(what, float(found.statistic), -np.inf, limit, _topic(kind))

    return _worst(failing())


@_of_finite
def determined_by_key(scheme: Scheme, arch: Architecture, seed: int, alpha: float, limits: Limits) -> Finding | None:
    """Test of `determined_by_key`: the program of two calls, and the correlation of two keys' weights."""
    first, again = (
        jax.make_jaxpr(lambda key: scheme.matrices(scheme.init(key, arch)))(jax.random.key(seed)) for _ in range(2)
    )
    same = len(first.consts) == len(again.consts) and all(map(np.array_equal, first.consts, again.consts))
    if not same or _without_addresses(str(first)) != _without_addresses(str(again)):
        what = "programs that two calls with one key gave"
        return Finding(what, 2, -np.inf, 1, hint="something beside the key decides: a counter, NumPy's generator")
    weights = drawn(scheme, arch, seed)
    for _, _, values, name in _tested(weights):
        half = len(values) // 2 * 2
        one, other = values[:half:2].ravel(), values[1:half:2].ravel()
        limit = _correlation_limit(len(one), alpha / _count(weights))
        if one.any() and abs(found := _correlation(one, other)) > limit:
            what = f"correlation of {name} between two keys"
            return Finding(what, found, -limit, limit, hint="the key is not used, or not split")
    return None


def _without_addresses(program: str) -> str:
    return re.sub(r"0x[0-9a-f]+", "", program)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def _correlation_limit(count: int, alpha: float) -> float:
    """|r| of two independent Gaussian vectors is above it with probability alpha: sqrt(n-1) r / sqrt(1 - r^2) ~ t."""
    if count < 3:
        return np.inf
    t = float(stats.t.isf(alpha / 2, count - 1))
    return t / sqrt(count - 1 + t * t)


def _largest_correlation(vectors: np.ndarray, others: np.ndarray) -> tuple[int, int, float]:
    """Of a row of one with a different row of the other: their places in order, and its value."""
    one, other = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300) for rows in (vectors, others))
    correlations = one @ other.T
    np.fill_diagonal(correlations, 0.0)
    i, j = np.unravel_index(np.argmax(np.abs(correlations)), correlations.shape)
    return int(min(i, j)), int(max(i, j)), float(correlations[i, j])


@_of_finite
def independent_matrices(scheme: Scheme, arch: Architecture, seed: int, alpha: float, limits: Limits) -> Finding | None:
    """Test of `independent_matrices`: every pair of matrices and layers, as they are and one transposed.

    Their first entries, because a counter-based generator gives two shapes with one key the same first numbers.
    """
    found_layers = [(values, name) for _, _, values, name in _tested(drawn(scheme, arch, seed))]
    if len(found_layers) < 2:
        raise NotApplicable("there is one matrix")
    count = min(values[0].size for values, _ in found_layers)
    names = [name for _, name in found_layers]

    def stacked(layers: list[np.ndarray]) -> np.ndarray:
        return np.stack([layer.reshape(len(layer), -1)[:, :count].ravel() for layer in layers])

    plain = stacked([values for values, _ in found_layers])
    turned = stacked([values.transpose(0, 2, 1) for values, _ in found_layers])
    pairs = len(names) * (len(names) - 1)
    limit = _correlation_limit(plain.shape[1], alpha / (2 * pairs))
    for other, how in ((plain, ""), (turned, ", transposed")):
        i, j, found = _largest_correlation(plain, other)
        if abs(found) > limit:
            what = f"correlation of {names[i]} with {names[j]}{how}"
            return Finding(what, found, -limit, limit, hint="a key that is used twice does this")
    return None


@_of_finite
def independent_entries(scheme: Scheme, arch: Architecture, seed: int, alpha: float, limits: Limits) -> Finding | None:
    """Test of `independent_entries`: every pair of rows and every pair of columns, over copies and the other axis."""
    weights = drawn(scheme, arch, seed)
    share = alpha / (3 * _count(weights))
    for _, _, values, name in _tested(weights):
        if values.shape[1] == values.shape[2] > 1:
            above = np.triu_indices(values.shape[1], 1)
            one, other = (part[:, *above].ravel() for part in (values, values.transpose(0, 2, 1)))
            limit = _correlation_limit(len(one), share)
            if one.any() and abs(found := _correlation(one, other)) > limit:
                return Finding(f"correlation of {name} with itself, transposed", found, -limit, limit)
        for axis, what in ((2, "columns"), (1, "rows")):
            vectors = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)[:_PAIRED]
            if len(vectors) < 2:
                continue
            limit = _correlation_limit(vectors.shape[1], share / (len(vectors) * (len(vectors) - 1) / 2))
            i, j, found = _largest_correlation(vectors, vectors)
            if abs(found) > limit:
                pair = f"correlation of {what} {i} and {j} of {name}"
                return Finding(pair, found, -limit, limit, hint="copies within the matrix do this")
    return None


@_of_finite
def exchangeable(scheme: Scheme, arch: Architecture, seed: int, alpha: float, limits: Limits) -> Finding | None:
    """Test of `exchangeable`: a row's share of the squares is Beta distributed, whatever the scale."""
    weights = drawn(scheme, arch, seed)
    share = alpha / (2 * _count(weights))

    def failing() -> Iterator[Finding]:
        for _, _, values, name in _tested(weights):
            squares = np.square(values)
            for axes, what in (((0, 2), "row"), ((0, 1), "column")):
                own = squares.sum(axis=axes)
                count, total = len(own), own.sum()
                if count < 2:
                    continue
                each = values.size // count
                law = stats.beta(each / 2, each * (count - 1) / 2)
                low, high = (sqrt(law.ppf(q) * count) for q in (share / (2 * count), 1 - share / (2 * count)))
                sizes = np.sqrt(own / total * count)
                for at in (int(np.argmax(sizes)), int(np.argmin(sizes))):
                    if not low <= sizes[at] <= high:
                        text = f"standard deviation of {what} {at} of {name}, over that of the matrix"
                        yield Finding(text, float(sizes[at]), low, high, hint=f"{what}s are not alike")

    return _worst(failing())


@_of_finite
def spectral_norm(scheme: Scheme, arch: Architecture, seed: int, alpha: float, limits: Limits) -> Finding | None:
    """Test of `spectral_norm`: Davidson and Szarek's bound, in units of the Gaussian matrix's typical norm."""
    weights = drawn(scheme, arch, seed)
    matrices = sum(min(len(weight), _SVDS) * weight.shape[1] for weight in weights.values())

    def failing() -> Iterator[Finding]:
        for kind, layer, values, name in _tested(weights):
            known = scheme.declared is not None and kind in MATRIX_KINDS
            std = _std(arch, kind, layer, values.shape) if known else 1.05 * sqrt(np.mean(np.square(values)))
            if not std:
                continue
            cutoff = arch.truncation(kind) if known else None
            tail = Tail(alpha / matrices, 1.0 if cutoff is None else 1 / float(truncated_std(cutoff)))
            rows, columns = values.shape[1:]
            typical = std * gaussian_norm(rows, columns)
            measured = float(np.linalg.norm(values[:_SVDS], 2, axis=(1, 2)).max()) / typical
            limit = tail.matrix(std, rows, columns) / typical
            if measured > limit:
                what = f"spectral norm of {name}, over a Gaussian matrix's of that size"
                yield Finding(what, measured, -np.inf, limit, "tail_bounds")

    return _worst(failing())


def layouts(scheme: Scheme, arch: Architecture, seed: int, alpha: float, limits: Limits) -> Finding | None:
    """Test of `layouts`: the standard deviation of a stacked or fused draw against that of one matrix at a time."""
    assert scheme.initializers is not None
    made, share = scheme.initializers(arch), alpha / (2 * len(MATRIX_KINDS) * max(len(limits.layouts), 1))
    parts = 3

    def failing() -> Iterator[Finding]:
        for kind in (kind for kind in MATRIX_KINDS if "." in kind):
            fan_in, fan_out = arch.shape(kind)
            shapes = {"stacked": (parts, fan_in, fan_out), "fused": (fan_in, parts * fan_out)}
            copies = ceil(ENTRIES / (fan_in * fan_out))
            keys = jax.random.split(jax.random.key(seed), copies)

            def std(shape: tuple[int, ...], kind: str = kind, keys: Any = keys) -> float:
                draws = jax.vmap(lambda key: drawn_by(made[kind], key, shape, f"{scheme.name}: {kind}"))(keys)
                return float(np.asarray(draws, np.float64).std())

            single = std((fan_in, fan_out))
            count = copies * fan_in * fan_out
            reach = sqrt(stats.f.isf(share, count, count))
            for layout in limits.layouts:
                ratio = std(shapes[layout]) / single if single else 1.0
                if not 1 / reach <= ratio <= reach:
                    hint = "batch_axis=0 leaves the layers out of the fans" if layout == "stacked" else ""
                    text = f"standard deviation of {kind} drawn {layout}, {parts} at once, over that of one"
                    yield Finding(text, ratio, 1 / reach, reach, _topic(kind), hint)

    return _worst(failing())


@_of_finite
def width_scaling(scheme: Scheme, arch: Architecture, seed: int, alpha: float, limits: Limits) -> Finding | None:
    """Test of `width_scaling`: fan_in std^2 of a block's matrices, at this width and at four times."""
    from dataclasses import replace

    wide = replace(arch, d_model=4 * arch.d_model, d_ff=4 * arch.ff_width)
    kinds = [kind for kind in MATRIX_KINDS if "." in kind]
    share = alpha / (2 * len(kinds) * arch.num_layers)

    def failing() -> Iterator[Finding]:
        narrow_draws, wide_draws = drawn(scheme, arch, seed), drawn(scheme, wide, seed)
        for kind, layer, values, name in _tested(narrow_draws):
            other = wide_draws[kind][:, layer] if kind in kinds else None
            if other is None or not other.any():
                continue
            ratio = 2 * other.std() / values.std()
            low, high = (sqrt(stats.f.ppf(q, other.size, values.size)) for q in (share, 1 - share))
            if not low <= ratio <= high:
                text = f"gain of {name} at d_model {wide.d_model} over that at {arch.d_model}"
                yield Finding(
                    text, float(ratio), low, high, _topic(kind), "its standard deviation must fall as 1/sqrt(width)"
                )

    return _worst(failing())


def _width_proof(scheme: Scheme, held: dict[str, Any], limits: Limits) -> str | None:
    """The gain of a block's matrices has no d in it, d_ff being a multiple of d."""
    if scheme.declared is None:
        return None
    d, wide = s.d, sp.Symbol("r", positive=True) * s.d
    fans = dict.fromkeys(("feed_forward.up", "feed_forward.gate"), (d, wide)) | {"feed_forward.down": (wide, d)}
    for kind in (kind for kind in MATRIX_KINDS if "." in kind):
        fan_in, fan_out = fans.get(kind, (d, d))
        gain = sp.simplify(fan_in * scheme.declared.rule(kind).subs({s.fan_in: fan_in, s.fan_out: fan_out}) ** 2)
        if d in gain.free_symbols:
            return None
    return "fan_in std^2 of every matrix of a block has no d in it (SymPy)"


def _declared(scheme: Scheme, limits: Limits) -> str:
    return "" if scheme.declared is not None else 'no rule is declared: declared="he", say, or an Initialization'


def _law_known(scheme: Scheme, limits: Limits) -> str:
    if scheme.distribution in ("normal", "truncated_normal", "uniform"):
        return ""
    return 'no law is declared: distribution="normal", "truncated_normal" or "uniform"'


def _has_layouts(scheme: Scheme, limits: Limits) -> str:
    if scheme.initializers is None:
        return "for initializers (key, shape, dtype): others draw whole models"
    return "" if limits.layouts else 'only if asked: layouts=("stacked", "fused")'


def _not_orthogonal(scheme: Scheme, limits: Limits) -> str:
    return "the entries of an orthogonal matrix depend on each other" if scheme.distribution == "orthogonal" else ""


def _of_any_width(scheme: Scheme, limits: Limits) -> str:
    return "" if scheme.ours else "for schemes of our Transformer, whose width can be changed"


OF_MATRICES = (
    Property("declared_std", "every matrix has the declared standard deviation, with its own fan-in and fan-out",
             declared_std, _shapes, _declared),
    Property("zero_mean", "entries have mean zero", zero_mean, _shapes),
    Property("distribution", "entries follow the declared law", distribution, _shapes, _law_known),
    Property("determined_by_key", "one key gives the same weights, another gives others", determined_by_key, _shapes),
    Property("independent_matrices", "no matrix or layer depends on another", independent_matrices, _shapes),
    Property("independent_entries", "no row or column of a matrix depends on another", independent_entries, _shapes,
             _not_orthogonal),
    Property("exchangeable", "rows are alike and columns are alike: permuting units changes nothing", exchangeable,
             _shapes),
    Property("spectral_norm", "spectral norms are below the bound that holds with high probability", spectral_norm,
             _shapes),
    Property("layouts", "stacked and fused shapes get the same standard deviation as one matrix", layouts, _shapes,
             _has_layouts),
    Property("width_scaling", "the gain of a block's matrices is the same at every width", width_scaling, _shapes,
             _of_any_width, _width_proof, costly=True),
)  # fmt: skip
