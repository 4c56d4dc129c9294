"""The closed form of an addition's bound against one step by step, on architectures drawn from all schemes."""

import math

import numpy as np
import pytest
import sympy as sp
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from theory import Activation, Architecture, Block, bound, feed_forward
from theory import notation as s
from theory.activation import ACTIVATIONS, activation, u
from theory.addition_bound import attention_matrix_bounds
from theory.architecture import NORMS
from theory.attention_scheme import ATTENTIONS, attention_scheme
from theory.block import BLOCKS, block
from theory.block_excess import at_gaussian_norms, evaluate, excess, size_after, sizes, stream_after
from theory.initialization import INITIALIZATIONS

_LIFTED = Activation("lifted", sp.cos(u), "a test")
MINE = Block(
    "mine", output_norm=True, post_norm=True, inner_norm=True, parallel=True, shortcut=2, branch=0.5, input=1 / s.layer
)


@st.composite
def drawn(draw: st.DrawFn) -> Architecture:
    """Three layers of any block, a user's own too, of any attention, unit, norm and initialisation."""
    pick = {
        "block": [*BLOCKS, MINE], "attention": list(ATTENTIONS), "norm": NORMS,
        "activation": [*ACTIVATIONS, _LIFTED],
        "initialization": list(INITIALIZATIONS), "num_kv_heads": [1, 2, 4], "d_ff": [24, 50], "seq_len": [5, 64],
        "norm_epsilon": [1e-5, 0.1],
    }  # fmt: skip
    fields = {name: draw(st.sampled_from(values)) for name, values in pick.items()}
    assume(not (fields["initialization"] == "zero_output" and fields["attention"] == "sigma_reparam"))
    return Architecture(num_layers=3, d_model=24, num_heads=4, **fields)


@settings(max_examples=60, deadline=None)
@given(drawn(), st.integers(0, 2**32 - 1))
def test_the_bound_is_that_of_a_walk_through_the_blocks_in_every_arrangement(arch: Architecture, seed: int) -> None:
    std = np.exp(np.random.default_rng(seed).normal(size=arch.num_sublayers + 1))
    found, (sublayer, heads) = bound(arch, shortcut_std=std), _walked(arch, std)
    np.testing.assert_allclose(found.sublayer, sublayer, rtol=1e-9)
    np.testing.assert_allclose(found.heads, heads, rtol=1e-10)


def _walked(arch: Architecture, shortcut_std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both fields of `bound` by numbers alone: through the blocks, one matrix, norm and size after the other."""
    sublayer, heads = [], []
    for layer in range(arch.num_layers):
        shortcut, branch, factor = arch.factors(layer)
        for parts in block(arch.block).additions:
            std = float(shortcut_std[len(sublayer)])
            inside, total = shortcut, shortcut * std
            for part in parts:
                pre = arch.normed("pre", part)
                slope = factor * (_slope(arch, std) if pre else 1.0)
                size = factor * (1.0 if pre else std)
                if part == "attention":
                    own, added, head = _through_attention(arch, layer, size)
                    heads.append(head)
                else:
                    own, added = _through_feed_forward(arch, layer, size)
                if arch.normed("output", part):
                    after = _slope(arch, added)
                    slope, added = slope * after, added * after
                inside += branch * slope * own
                total = math.hypot(total, branch * added)
            sublayer.append(inside * (_slope(arch, total) if block(arch.block).post_norm else 1.0))
    return np.array(sublayer), np.array(heads)


def _slope(arch: Architecture, std: float) -> float:
    return 1 / math.hypot(std, math.sqrt(arch.norm_epsilon))


def _norms(arch: Architecture, part: str, layer: int) -> tuple[dict[str, float], dict[str, float]]:
    """Of that part's matrices: the standard deviation that they act with, and the norm."""
    std, norm = {"gate": 0.0}, {"gate": 0.0}
    for kind in (kind for kind in arch.matrices if kind.startswith(part)):
        rows, columns = arch.shape(kind)
        name = kind.partition(".")[2]
        std[name] = float(arch.effective_std(kind)[layer])
        norm[name] = 1.0 if attention_scheme(arch.attention).spectral else std[name] * (rows**0.5 + columns**0.5)
    return std, norm


def _through_attention(arch: Architecture, layer: int, size: float) -> tuple[float, float, float]:
    """Bound on the sub-layer's own Jacobian, size of the row it adds, bound on the heads. size: of its input."""
    scheme, (std, norm) = attention_scheme(arch.attention), _norms(arch, "attention", layer)
    entry = {name: std[name] * math.sqrt(arch.d_model) * size for name in ("query", "key", "value")}
    slope = {name: _slope(arch, entry[name]) if name in scheme.normed else 1.0 for name in entry}
    entry = {name: 1.0 if name in scheme.normed else value for name, value in entry.items()}
    averaging, column = attention_matrix_bounds(
        arch.seq_len, scheme.temperature_at(arch.d_head) * entry["query"] * entry["key"]
    )
    length = {name: math.sqrt(arch.d_head) * value for name, value in entry.items()}
    low, high = scheme.clip or (0.0, 1.0)
    group = math.sqrt(arch.num_heads / arch.kv_heads)
    score = scheme.temperature_at(arch.d_head) * (high - low) / math.sqrt(arch.d_head)
    heads = (
        (high - low) * averaging * group * norm["value"] * slope["value"]
        + score * length["value"] * length["key"] * norm["query"] * slope["query"]
        + score * length["value"] * length["query"] * group * math.sqrt(column) * norm["key"] * slope["key"]
    )
    mixed = entry["value"] * max((high - low) / arch.seq_len + low, 0.0) * math.sqrt(arch.seq_len)
    own = norm["output"] * heads
    if arch.normed("inner", "attention"):
        own, mixed = own * _slope(arch, mixed), mixed * _slope(arch, mixed)
    return own, std["output"] * math.sqrt(arch.d_model) * mixed, heads


def _through_feed_forward(arch: Architecture, layer: int, size: float) -> tuple[float, float]:
    """The same two of a feed-forward layer, its hidden layer by SciPy's quadrature, in pieces about the kink."""
    scheme, (std, norm) = activation(arch.activation), _norms(arch, "feed_forward", layer)
    up, gate = (std[name] * math.sqrt(arch.d_model) * size for name in ("up", "gate"))
    largest = math.sqrt(2 * math.log(2 * arch.ff_width * arch.seq_len))
    lipschitz, at_zero = feed_forward.lipschitz(scheme), abs(scheme.at_zero)
    within = gate if scheme.gated else up

    def moment(power: int) -> float:
        def weighed(z: float) -> float:
            return float(scheme.numeric[0](np.array(within * z)) ** power * math.exp(-(z**2) / 2))

        halves = [quad(weighed, *half, epsabs=0, epsrel=1e-12)[0] for half in ((-12, 0), (0, 12))]
        return sum(halves) / math.sqrt(2 * math.pi)

    hidden = normed = math.sqrt(moment(2)) * (up if scheme.gated else 1.0)
    if not scheme.gated and arch.norm == "layer_norm":
        normed = math.sqrt(max(hidden**2 - moment(1) ** 2, 0.0))
    if scheme.gated:
        own = norm["down"] * (
            lipschitz * up * largest * norm["gate"] + (at_zero + lipschitz * gate * largest) * norm["up"]
        )
    else:
        own = norm["down"] * lipschitz * norm["up"]
    if arch.normed("inner", "feed_forward"):
        own, hidden = own * _slope(arch, normed), normed * _slope(arch, normed)
    return own, std["down"] * math.sqrt(arch.ff_width) * hidden


@pytest.mark.parametrize("name", BLOCKS)
def test_the_stack_is_the_product_of_shortcuts_and_excesses(name: str) -> None:
    """The topic `unequal_chain` on 3 blocks, the stream unequal at all places."""
    arch = Architecture(num_layers=3, d_model=32, num_heads=2, seq_len=8, block=name, initialization="he")
    std = np.linspace(0.3, 2.0, arch.num_sublayers + 1)
    additions = block(name).additions
    product = 1.0
    for place in range(arch.num_sublayers):
        layer, number = divmod(place, len(additions))
        now, parts = sizes(arch, layer, std[place]), additions[number]
        slope = evaluate(stream_after(arch, parts), now) / evaluate(size_after(arch, parts), now)
        product *= slope * arch.factors(layer)[0] * (1 + sum(evaluate(excess(arch, part), now) for part in parts))
    assert product == pytest.approx(bound(arch, shortcut_std=std).product, rel=1e-9)


def test_a_norm_hides_what_it_divides_by() -> None:
    """Of the feed-forward layer at Gaussian norms: which of its two standard deviations and the stream are left."""
    left = {
        name: {str(x) for x in at_gaussian_norms(Architecture(block=name), "feed_forward").free_symbols}
        & {"sigma_1", "sigma_2", "sigma_x'"}
        for name in ("pre_ln", "post_ln", "sandwich", "output_norm", "sub_ln", "no_norm")
    }
    matrices, stream = {"sigma_1", "sigma_2"}, {"sigma_x'"}
    assert left == {
        "pre_ln": matrices | stream, "post_ln": matrices, "sandwich": stream, "output_norm": stream,
        "sub_ln": {"sigma_2"} | stream, "no_norm": matrices,
    }  # fmt: skip


def test_a_matrix_over_its_own_norm_has_no_scale() -> None:
    free = at_gaussian_norms(Architecture(attention="sigma_reparam"), "attention").free_symbols
    assert not free & {s.sigma_O, s.sigma_V, s.sigma_Q, s.sigma_K} and s.sigma_x in free


def test_an_unknown_piece_is_refused() -> None:
    with pytest.raises(
        ValueError, match="piece: unknown value 'keys'; choose one of attention, values, scores, feed_f"
    ):
        excess(Architecture(), "keys")
