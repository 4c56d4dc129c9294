"""Properties of what runs through a network that a scheme starts: the residual stream, the loss, and its gradient."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import sympy as sp
from hypothesis import find, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample, Unsatisfiable
from scipy import stats

import models
from theory import Architecture, Prediction, large_shortcut, predict, small_sublayers
from theory.activation import ACTIVATIONS
from theory.architecture import NORMS
from theory.growth import Growth, growth
from theory.initialization import Initialization
from verify.measurement.compare import relative_standard_error
from verify.measurement.measure import QUICK, Measurement, measure
from verify.measurement.places import Place, PlaceError, measure_places
from verify.properties.matrices import drawn
from verify.properties.property import Finding, Limits, NotApplicable, Property
from verify.properties.scheme import Scheme, SchemeError
from verify.properties.strategies import Widths, architectures

SEEDS = 8
BATCH = 4
# what predict leaves out at this width: its own error, at most 10 % in 300 architectures (benchmarks/accuracy.py)
MODEL_ERROR = 0.10
_WIDE = (Widths(128, 4, 4, 512, 64, 16), Widths(128, 2, 1, 320, 50, 16))
_GATED = Widths(128, 2, 1, 320, 50, 8)
_SMALL = (Widths(8, 2, 1, 32, 11, 4), Widths(32, 4, 2, 128, 50, 8))
_PUBLISHED = (Widths(256, 4, 4, 1024, 512, 64), Widths(256, 4, 2, 640, 256, 64))
_DEPTHS = (2, 4, 8)
_DEEP = 4
_OF_ANY_STREAM = "telescoping"
"""the derivation that is named for models of one's own"""


def _fixed_by_default(scheme: Scheme) -> dict[str, Any]:
    """The paper's arrangement with its fix; a scheme of one's own takes the place of its field."""
    return {"block": "pre_ln", "embedding": "scaled", "attention": "standard", "tied": False} | dict(scheme.fields)


def _networks(scheme: Scheme, held: dict[str, Any]) -> st.SearchStrategy[Architecture]:
    return architectures(_WIDE, _DEPTHS, **_fixed_by_default(scheme) | _rule(scheme) | held)


def _gated(scheme: Scheme, held: dict[str, Any]) -> list[Architecture]:
    """A gated network of RMSNorms at every depth, where gradients grow the most.

    None where what is held forbids it, or a model of one's own has a gate or none, whatever an architecture says.
    """
    depths = held.get("num_layers", list(_DEPTHS))
    if isinstance(depths, st.SearchStrategy) or not scheme.ours:
        return []
    plain: dict[str, Any] = {"activation": "swiglu", "norm": "rms_norm", "positions": "none", "bias": False}
    fields = plain | _fixed_by_default(scheme) | _rule(scheme) | held

    def simplest(depth: int) -> Architecture:
        drawn = architectures((_GATED,), **fields | {"num_layers": depth})
        return find(drawn, lambda arch: True, settings=settings(database=None))

    try:
        return [simplest(depth) for depth in sorted(depths if isinstance(depths, list) else [depths])]
    except (NoSuchExample, Unsatisfiable):
        return []


def _of_published_depth(scheme: Scheme, held: dict[str, Any]) -> st.SearchStrategy[Architecture]:
    """Depths at which the requirements are meant; none of them is run."""
    return architectures(_PUBLISHED, (8, 24), **_fixed_by_default(scheme) | _rule(scheme) | held)


def _small_networks(scheme: Scheme, held: dict[str, Any]) -> st.SearchStrategy[Architecture]:
    tied: dict[str, Any] = {"tied": [False, True]}
    return architectures(_SMALL, (1, 2, 3), **_fixed_by_default(scheme) | tied | _rule(scheme) | held)


def _rule(scheme: Scheme) -> dict[str, Any]:
    """What stands for the scheme where an architecture names an initialisation."""
    return {} if "initialization" in scheme.fields else {"initialization": scheme.declared or "megatron"}


@lru_cache(maxsize=32)
def _measured(scheme: Scheme, arch: Architecture, seed: int) -> Measurement:
    if scheme.ours:
        return measure(arch, BATCH, SEEDS, first_seed=seed, init=scheme.init, quick=True)

    def loss(key: Any, place: Place) -> Any:
        of_weights, of_tokens = jax.random.split(key)
        tokens = jax.random.randint(of_tokens, (BATCH, arch.seq_len + 1), 0, arch.vocab_size)
        assert scheme.loss is not None
        return scheme.loss(scheme.init(of_weights, arch), tokens, arch, place)

    try:
        return measure_places(loss, SEEDS, first_seed=seed)
    except PlaceError as error:
        raise SchemeError(f"scheme {scheme.name}: {error}") from error


@lru_cache(maxsize=32)
def _predicted(arch: Architecture) -> Prediction:
    return predict(arch, BATCH)


def ruled(scheme: Scheme, arch: Architecture, seed: int) -> Architecture:
    """The architecture with a rule for what the scheme draws: the declared one, else measured standard deviations."""
    if scheme.symbolic or scheme.declared is not None:
        return scheme.arch(arch)
    stds = {kind: sp.Float(np.sqrt(np.mean(np.square(weight)))) for kind, weight in drawn(scheme, arch, seed).items()}
    return replace(arch, initialization=Initialization("measured", stds["embedding"], stds, "measured"))


def finite(scheme: Scheme, arch: Architecture, seed: int, alpha: float, limits: Limits) -> Finding | None:
    """Test of `finite`: the number of entries that are not, of loss and gradients, dtype by dtype."""
    key, of_tokens = jax.random.split(jax.random.key(seed))
    tokens = jax.random.randint(of_tokens, (BATCH, arch.seq_len + 1), 0, arch.vocab_size)
    lost = jax.device_get(_not_finite(key, tokens, scheme, arch, limits.dtypes))
    for dtype, count in zip(limits.dtypes, lost, strict=True):
        if count:
            what = f"entries of loss and gradients in {dtype} that are not finite"
            return Finding(what, int(count), -np.inf, 0, "norm_epsilon")
    return None


@partial(jax.jit, static_argnums=(2, 3, 4), compiler_options=QUICK)
def _not_finite(key: Any, tokens: Any, scheme: Scheme, arch: Architecture, dtypes: tuple[str, ...]) -> list[Any]:
    leaves, structure = jax.tree.flatten(scheme.init(key, arch))
    trained = [hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def loss(weights: list[Any], dtype: str) -> Any:
        left = iter(weights if scheme.ours else [weight.astype(dtype) for weight in weights])
        both = [next(left) if own else leaf for leaf, own in zip(leaves, trained, strict=True)]
        params = jax.tree.unflatten(structure, both)
        if scheme.ours:
            return models.loss(params, tokens, arch, switches=models.Switches(dtype=dtype))[0]
        assert scheme.loss is not None
        return scheme.loss(params, tokens, arch)

    weights = [jnp.asarray(leaf) for leaf, own in zip(leaves, trained, strict=True) if own]
    found = (jax.value_and_grad(loss)(weights, dtype) for dtype in dtypes)
    return [sum(jnp.sum(~jnp.isfinite(leaf)) for leaf in jax.tree.leaves(both)) for both in found]


def stream_band(scheme: Scheme, arch: Architecture, seed: int, alpha: float, limits: Limits) -> Finding | None:
    """Test of `stream_band`."""
    stds = np.sqrt(np.square(_measured(scheme, arch, seed).shortcut_std).mean(axis=0))
    ratio, limit = float(stds.max() / stds.min()), limits.std_ratio
    low, high = int(stds.argmin()), int(stds.argmax())
    if ratio <= limit:
        return None
    what = f"standard deviation of the stream at place {high} over that at place {low}"
    topic = "two_number_map" if scheme.ours else _OF_ANY_STREAM
    return Finding(what, ratio, -np.inf, limit, topic, f"{stds[low]:.3g} and {stds[high]:.3g}")


def amplification(scheme: Scheme, arch: Architecture, seed: int, alpha: float, limits: Limits) -> Finding | None:
    """Test of `amplification`: geometric mean over seeds."""
    found = float(np.exp(np.log(_measured(scheme, arch, seed).amplification).mean()))
    if found <= limits.amplification:
        return None
    what = "gradient norm at the first place over that at the last"
    hint = "python -m theory recommend says what to change" if scheme.ours else ""
    derived = _derived(scheme, arch, seed)
    return Finding(what, found, -np.inf, limits.amplification, derived.topic if derived else _OF_ANY_STREAM, hint)


def growth_exponent(scheme: Scheme, arch: Architecture, seed: int, alpha: float, limits: Limits) -> Finding | None:
    """Test of `growth_exponent`: derived where there is a rule, else the slope from this depth to a multiple of it."""
    derived = _derived(scheme, arch, seed)
    if derived and (scheme.symbolic or scheme.declared is not None) and derived.kind != "not derived":
        exponent, highest = _exponent(derived), limits.growth_exponent
        what = f"derived exponent of the amplification ({derived.formula})"
    else:
        times = _DEEP if scheme.ours else 2  # a model of one's own has a loop over its blocks: slow to compile
        deep = replace(arch, num_layers=times * arch.num_layers)
        if not scheme.ours and _weights(scheme, arch) == _weights(scheme, deep):
            raise NotApplicable("num_layers changes nothing in the model: let init and loss take arch")
        logs = [np.log(_measured(scheme, model, seed).amplification) for model in (arch, deep)]
        slopes = (logs[1] - logs[0]) / np.log(times)
        exponent = float(slopes.mean())
        reach = float(stats.t.isf(alpha, SEEDS - 1) * slopes.std(ddof=1) / np.sqrt(SEEDS))
        highest = limits.growth_exponent + reach
        what = f"slope of log amplification in log num_layers, {arch.num_layers} to {deep.num_layers} blocks"
    topic = derived.topic if derived else _OF_ANY_STREAM
    return None if exponent <= highest else Finding(what, exponent, -np.inf, highest, topic)


def _derived(scheme: Scheme, arch: Architecture, seed: int) -> Growth | None:
    """How the amplification grows; None for a model of one's own, which the theory does not know."""
    return growth(ruled(scheme, arch, seed)) if scheme.ours else None


def _weights(scheme: Scheme, arch: Architecture) -> list[tuple[int, ...]]:
    """Shapes of a model's parameters."""
    return [
        leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(lambda key: scheme.init(key, arch), jax.random.key(0)))
    ]


def _exponent(derived: Growth) -> float:
    """Of a power; 0 below any power, infinite above all."""
    return {"constant": 0.0, "logarithm": 0.0, "power": derived.exponent}.get(derived.kind, np.inf)


def two_requirements(scheme: Scheme, arch: Architecture, seed: int, alpha: float, limits: Limits) -> Finding | None:
    """Test of `two_requirements`: the paper's in this arrangement, the feed-forward layer as the paper has it."""
    at = replace(ruled(scheme, arch, seed), activation="relu")
    topic = "two_requirements" if arch.block == "pre_ln" else "requirements_of_blocks"
    if not (found := large_shortcut(at)).holds:
        what = f"{found.meaning} (large shortcut)"
        return Finding(what, found.number, found.limit, np.inf, topic, f"met by {found.met_by}")
    if not (found := small_sublayers(at)).holds:
        what = f"{found.meaning} (small sub-layers)"
        return Finding(what, found.number, -np.inf, found.limit, topic, f"met by {found.met_by}")
    return None


def predicted(scheme: Scheme, arch: Architecture, seed: int, alpha: float, limits: Limits) -> Finding | None:
    """Test of `predicted`: stream and gradient at every place, over what sampling and `predict` itself leave open."""
    expected, found = _predicted(ruled(scheme, arch, seed)), _measured(scheme, arch, seed)

    def failing() -> Iterator[tuple[float, Finding]]:
        for name, label in (("shortcut_std", "standard deviation of the stream"), ("gradient_norm", "gradient norm")):
            draws, goal = getattr(found, name), getattr(expected, name)
            middle = np.sqrt(np.square(draws).mean(axis=0))
            reach = stats.t.isf(alpha / (4 * len(goal)), SEEDS - 1) * relative_standard_error(draws)
            slack = (1 + MODEL_ERROR) * np.exp(reach)
            ratio = middle / goal
            at = int(np.argmax(np.abs(np.log(ratio)) - np.log(slack)))
            if not 1 / slack[at] <= ratio[at] <= slack[at]:
                what = f"{label} at place {at}, measured over predicted"
                finding = Finding(what, float(ratio[at]), 1 / float(slack[at]), float(slack[at]), "two_number_map")
                yield abs(np.log(ratio[at])), finding

    return max(failing(), key=lambda pair: pair[0], default=(0.0, None))[1]


def _has_loss(scheme: Scheme, limits: Limits) -> str:
    return "" if scheme.loss is not None else "the model has no loss"


def _is_ours(scheme: Scheme, limits: Limits) -> str:
    return "" if scheme.ours else "for schemes of our Transformer, which the theory knows"


def _has_places(scheme: Scheme, limits: Limits) -> str:
    if scheme.ours or scheme.marks_places:
        return ""
    return "the loss marks no places of the stream: give it a parameter place, and write x = place(x) at each"


def _growth_proof(scheme: Scheme, held: dict[str, Any], limits: Limits) -> str | Architecture | None:
    """Nothing else of an architecture changes the class of one block, embedding and attention."""
    derived = True
    for kind, norm in product(ACTIVATIONS, NORMS):
        free: dict[str, Any] = {"num_heads": 1, "positions": "none", "activation": kind, "norm": norm}
        fields = free | _fixed_by_default(scheme) | _rule(scheme) | held
        if any(isinstance(value, list | st.SearchStrategy) for value in fields.values()):
            return None
        arch = Architecture(**fields)
        found = growth(arch)
        derived = derived and found.kind != "not derived"
        if found.kind != "not derived" and _exponent(found) > limits.growth_exponent:
            return arch
    return "derived in the limit of many blocks, for every activation and norm and at any width" if derived else None


OF_LOSS = (
    Property("finite", "loss and gradients are finite in every dtype", finite, _small_networks, _has_loss,
             costly=True),
)  # fmt: skip
OF_STREAM = (
    Property("stream_band", "the stream's standard deviation stays within a band over depth", stream_band, _networks,
             _has_places, costly=True, anchors=_gated),
    Property("amplification", "gradients grow by less than a budget from the last block to the first", amplification,
             _networks, _has_places, costly=True, anchors=_gated),
    Property("growth_exponent", "the amplification grows with depth no faster than a power", growth_exponent, _networks,
             _has_places, _growth_proof, costly=True, anchors=_gated),
    Property("two_requirements", "sub-layers are small and the shortcut is large", two_requirements,
             _of_published_depth, _is_ours, costly=True),
    Property("predicted", "stream and gradient are what the theory predicts", predicted, _networks, _is_ours,
             costly=True, anchors=_gated),
)  # fmt: skip
