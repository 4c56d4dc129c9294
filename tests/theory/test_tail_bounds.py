"""The tails against draws, and what `bound(arch, "high_probability")` makes of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from theory import Architecture, Initialization, bound
from theory.activation import ACTIVATIONS
from theory.architecture import NORMS, POSITIONS
from theory.attention_scheme import ATTENTIONS
from theory.block import BLOCKS
from theory.embedding import EMBEDDINGS
from theory.high_probability import events
from theory.initialization import INITIALIZATIONS
from theory.tail_bounds import Tail

DELTA, DRAWS = 0.1, 20_000
SAMPLING = 4 * np.sqrt(DELTA / DRAWS)


@pytest.mark.parametrize("size", [1, 2, 5, 32])
def test_lengths_fall_beyond_as_often_as_they_may(size: int) -> None:
    lengths = np.linalg.norm(np.random.default_rng(size).normal(size=(DRAWS, size)), axis=1)
    assert np.mean(lengths < Tail(DELTA).shortest(size)) == pytest.approx(DELTA, abs=SAMPLING)
    assert np.mean(lengths > Tail(DELTA).longest(size)) <= DELTA
    assert np.mean(lengths > Tail(DELTA).longest(size) - Tail(DELTA).t) > DELTA


@pytest.mark.parametrize("size", [2, 3, 16])
def test_no_step_along_a_random_direction_shortens_a_vector_more(size: int) -> None:
    """The shortest of |x + s g| over s >= 0 by trying: it is the sine of the angle, or all of x where s = 0 is best."""
    directions = np.random.default_rng(size).normal(size=(DRAWS, size))
    best = np.maximum(-directions[:, 0], 0) / np.sum(directions**2, axis=1)
    x = np.eye(size)[0]
    shortest = np.linalg.norm(x + best[:, None] * directions, axis=1)
    assert np.mean(shortest < Tail(DELTA).sine(size)) == pytest.approx(DELTA, abs=SAMPLING)


def test_of_one_direction_nothing_may_be_left() -> None:
    assert Tail(DELTA).sine(1) == 0


def test_feed_forward_by_hand() -> None:
    """Attention that adds nothing leaves the stream as embedded: the shortest of T rows, the events' common share."""
    rules = Initialization("mine", 0.1, {"attention.output": 0, "feed_forward.down": 0.001, "embedding": 0.3}, "a test")
    arch = Architecture(
        num_layers=1, d_model=16, d_ff=64, seq_len=4, vocab_size=9, activation="relu", initialization=rules,
        embedding="vanilla", norm_epsilon=0.04,
    )  # fmt: skip
    found = bound(arch, "high_probability", 0.99)
    delta = 0.01 / events(arch)
    shortest, t = 0.3 * np.sqrt(stats.chi2.ppf(delta, 15)), np.sqrt(-2 * np.log(delta))
    divisor = np.sqrt(shortest**2 / 16 + 0.04)
    assert found.sublayer == pytest.approx([1, 1 + 0.1 * 0.001 * (4 + 8 + t) ** 2 / divisor], rel=1e-9)
    step = 0.001 * 0.1 * 4 * (8 + t)  # one so small takes less by its size than by its angle
    assert found.shortcut_std == pytest.approx(np.array([shortest, shortest, shortest - t * step]) / 4, rel=1e-9)


def test_where_the_matrices_are_divided_by_their_norms_their_size_is_of_no_account() -> None:
    for method in ("paper", "high_probability"):
        small, large = (
            bound(
                Architecture(
                    num_layers=2, attention="sigma_reparam", initialization=name, embedding="unit", activation="swiglu"
                ),
                method,
                shortcut_std=np.ones(5) if method == "paper" else None,
            ).sublayer
            for name in ("gpt2", "he")
        )
        assert small == pytest.approx(large, rel=1e-9)


def test_a_matrix_over_its_norm_has_norm_1() -> None:
    arch = Architecture(num_layers=1, attention="sigma_reparam", activation="relu", norm_epsilon=0.0)
    assert bound(arch, shortcut_std=np.full(3, 0.5)).sublayer[1] == pytest.approx(1 + 1 / 0.5, rel=1e-12)


def test_a_step_under_sigma_reparametrisation_by_hand() -> None:
    """W z / ‖W‖ with ‖W‖ at its smallest, ‖W‖_F / sqrt d; the output's row is W_O's step times the heads' length."""
    arch = Architecture(
        num_layers=1, d_model=16, num_heads=2, seq_len=4, vocab_size=9, attention="sigma_reparam", embedding=1000.0
    )
    delta = 0.01 / events(arch)
    t, row = np.sqrt(-2 * np.log(delta)), 1000 * np.sqrt(2 / 80) * np.sqrt(stats.chi2.ppf(delta, 15))
    most = 4 / np.sqrt(stats.chi2.ppf(delta, 256))
    step = min(1, most * (4 + t)) / 4 * most * 4 * (4 + t)
    found = bound(arch, "high_probability", 0.99)
    assert found.shortcut_std[1] == pytest.approx((row - t * step) / 4, rel=1e-9)


@pytest.mark.parametrize("initialization", ["olmo2", "ssp"])
def test_a_gaussian_that_is_cut_off_is_refused(initialization: str) -> None:
    with pytest.raises(ValueError, match=f"initialization: '{initialization}' cuts the Gaussian of"):
        bound(Architecture(initialization=initialization), "high_probability")


def test_a_shortcut_is_refused() -> None:
    with pytest.raises(ValueError, match="shortcut_std: only method 'paper'"):
        bound(Architecture(num_layers=1), "high_probability", shortcut_std=np.ones(3))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_more_certainty_costs_more_in_every_arrangement(data: st.DataObject) -> None:
    """And every bound but a frozen branch's is finite, unless it is refused for one of the two reasons."""
    choose = {
        "block": list(BLOCKS), "attention": list(ATTENTIONS), "activation": list(ACTIVATIONS), "norm": NORMS,
        "positions": POSITIONS, "initialization": list(INITIALIZATIONS), "embedding": list(EMBEDDINGS),
        "num_kv_heads": [None, 1], "d_model": [8, 32],
    }  # fmt: skip
    fields = {name: data.draw(st.sampled_from(values), name) for name, values in choose.items()}
    low, high = sorted(data.draw(st.lists(st.floats(0.01, 0.9999), min_size=2, max_size=2, unique=True)))
    try:
        arch = Architecture(num_layers=2, num_heads=2, vocab_size=9, seq_len=6, **fields)  # type: ignore[arg-type]
    except ValueError:
        return  # sigma-reparametrisation of matrices that are 0
    cut = any(arch.truncation(kind) for kind in (*arch.matrices, "embedding"))
    cut = cut or (arch.positions == "learned" and arch.truncation("position") is not None)
    if cut or BLOCKS[fields["block"]].inner_norm or arch.normed("output", "attention"):
        with pytest.raises(ValueError, match=r"initialization: .* cuts|has a norm on the"):
            bound(arch, "high_probability", low)
        return
    less, more = (bound(arch, "high_probability", p).sublayer for p in (low, high))
    # of branches that write nothing both are the same number, but for the last bit
    assert np.all(less <= more * (1 + 4 * np.finfo(float).eps)) and np.all(np.isfinite(more)) and np.all(less > 0)
    if fields["block"] != "rezero" and fields["initialization"] != "zero_output":
        assert np.all(less < more)
