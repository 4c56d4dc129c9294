"""The tails against draws, and what `bound(arch, "high_probability")` makes of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from theory import Architecture, Block, Initialization, bound
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
    step = min(1, most * (4 + t)) / 4 * 4 * min(most * (4 + t), np.sqrt(2))  # two heads, of norm 1 at most
    found = bound(arch, "high_probability", 0.99)
    assert found.shortcut_std[1] == pytest.approx((row - t * step) / 4, rel=1e-9)


@pytest.mark.parametrize("size", [2, 5, 60])
@pytest.mark.parametrize("cutoff", [0.3, 2.0])
def test_tails_of_gaussians_that_are_cut_off(size: int, cutoff: float) -> None:
    """Their lengths, the sine of their angle to a fixed direction, and the norms of their matrices."""
    std = stats.truncnorm.std(-cutoff, cutoff)
    entries = stats.truncnorm.rvs(-cutoff, cutoff, size=(DRAWS, size), random_state=size) / std
    lengths, tail = np.linalg.norm(entries, axis=1), Tail(DELTA, 1 / std)
    assert np.mean(lengths < tail.shortest(size)) <= DELTA and np.mean(lengths > tail.longest(size)) <= DELTA
    assert np.mean(entries[:, 0] > tail.t) <= DELTA
    fixed = np.random.default_rng(0).normal(size=size)
    cosine = entries @ fixed / np.linalg.norm(fixed) / lengths
    assert np.mean(np.sqrt(1 - np.minimum(cosine, 0) ** 2) < tail.sine(size)) <= DELTA
    matrices = entries[: DRAWS // size * size].reshape(-1, size, size)[:300]
    assert np.mean(np.linalg.norm(matrices, 2, axis=(1, 2)) > tail.matrix(1.0, size, size)) <= DELTA


def test_a_gaussian_hardly_cut_off_is_nearly_whole() -> None:
    """The cut one's tails go by concentration, the whole one's by quantiles: near, and never the sharper."""
    whole, cut = Tail(1e-6), Tail(1e-6, 1 + 1e-9)
    assert cut.longest(4096) == pytest.approx(whole.longest(4096), rel=1e-6)
    assert 0.95 * whole.shortest(4096) < cut.shortest(4096) < whole.shortest(4096)
    assert 0.8 * whole.sine(4096) < cut.sine(4096) < whole.sine(4096)


def test_a_norm_that_nothing_keeps_from_dividing_by_its_epsilon() -> None:
    """Norms on outputs by hand: each branch's bound over sqrt(epsilon), each step of a length of at most sqrt d."""
    fields = {"num_layers": 1, "d_model": 16, "d_ff": 64, "num_heads": 2, "seq_len": 4, "vocab_size": 9,
              "activation": "relu", "norm_epsilon": 0.04}  # fmt: skip
    plain, normed = (bound(Architecture(block=b, **fields), "high_probability") for b in ("pre_ln", "sandwich"))
    assert normed.sublayer[0] - 1 == pytest.approx((plain.sublayer[0] - 1) / 0.2, rel=1e-9)
    with pytest.raises(ValueError, match="norm_epsilon: at 0 nothing keeps"):
        bound(Architecture(block="sub_ln", **fields | {"norm_epsilon": 0.0}), "high_probability")


@pytest.mark.parametrize(("initialization", "nothing"), [("megatron", False), ("olmo2", True)])
def test_two_normed_rows_of_cut_off_gaussians_may_undo_the_stream(initialization: str, nothing: bool) -> None:
    """Each has a direction near a random one, their sum need not: it may be the stream's own, turned around."""
    alone, both = (
        bound(
            Architecture(
                num_layers=1, d_model=256, num_heads=4, seq_len=4, vocab_size=9, embedding="vanilla",
                initialization=initialization, block=Block("mine", output_norm=True, parallel=parallel),
            ),
            "high_probability",
        ).shortcut_std
        for parallel in (False, True)
    )  # fmt: skip
    assert np.all(alone > 0) and both[0] == pytest.approx(alone[0], rel=0.01)
    assert bool(both[1] == 0) is nothing


def test_a_shortcut_is_refused() -> None:
    with pytest.raises(ValueError, match="shortcut_std: only method 'paper'"):
        bound(Architecture(num_layers=1), "high_probability", shortcut_std=np.ones(3))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_more_certainty_costs_more_in_every_arrangement(data: st.DataObject) -> None:
    """And every bound is finite."""
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
    less, more = (bound(arch, "high_probability", p).sublayer for p in (low, high))
    # of branches that write nothing both are the same number, but for the last bit
    assert np.all(less <= more * (1 + 4 * np.finfo(float).eps)) and np.all(np.isfinite(more)) and np.all(less > 0)
    # where epsilon may be all that a norm divides by, both may be the same number too
    cut = any(arch.truncation(kind) for kind in (*arch.matrices, "embedding", "position"))
    normed = any(arch.normed(where, part) for where in ("output", "inner") for part in ("attention", "feed_forward"))
    if fields["block"] != "rezero" and fields["initialization"] != "zero_output" and not cut and not normed:
        every = fields["attention"] != "sigma_reparam"  # under which a layer without norms may have norm 1 exactly
        assert np.all(less < more) if every else np.any(less < more)
