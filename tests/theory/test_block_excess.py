"""The closed form of an addition's bound against the bound as numbers, on architectures drawn from all schemes."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from theory import Architecture, Block, bound
from theory import notation as s
from theory.activation import ACTIVATIONS
from theory.architecture import NORMS
from theory.attention_scheme import ATTENTIONS
from theory.block import BLOCKS, block
from theory.block_excess import addition_bound, at_gaussian_norms, evaluate, excess, size_after, sizes, stream_after
from theory.initialization import INITIALIZATIONS

MINE = Block(
    "mine", output_norm=True, post_norm=True, inner_norm=True, parallel=True, shortcut=2, branch=0.5, input=1 / s.layer
)


@st.composite
def drawn(draw: st.DrawFn) -> Architecture:
    """Three layers of any block, a user's own too, of any attention, unit, norm and initialisation."""
    pick = {
        "block": [*BLOCKS, MINE], "attention": list(ATTENTIONS), "activation": list(ACTIVATIONS), "norm": NORMS,
        "initialization": list(INITIALIZATIONS), "num_kv_heads": [1, 2, 4], "d_ff": [24, 50], "seq_len": [5, 64],
        "norm_epsilon": [1e-5, 0.1],
    }  # fmt: skip
    fields = {name: draw(st.sampled_from(values)) for name, values in pick.items()}
    assume(not (fields["initialization"] == "zero_output" and fields["attention"] == "sigma_reparam"))
    return Architecture(num_layers=3, d_model=24, num_heads=4, **fields)


def _bounds(arch: Architecture, std: np.ndarray) -> list[float]:
    additions, found = block(arch.block).additions, []
    for place in range(arch.num_sublayers):
        layer, number = divmod(place, len(additions))
        found.append(evaluate(addition_bound(arch, additions[number]), sizes(arch, layer, std[place])))
    return found


@settings(max_examples=60, deadline=None)
@given(drawn(), st.integers(0, 2**32 - 1))
def test_the_closed_form_is_the_papers_bound_in_every_arrangement(arch: Architecture, seed: int) -> None:
    std = np.exp(np.random.default_rng(seed).normal(size=arch.num_sublayers + 1))
    np.testing.assert_allclose(_bounds(arch, std), bound(arch, shortcut_std=std).sublayer, rtol=1e-10)


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
