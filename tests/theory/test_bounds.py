"""`bound`: shapes, special cases by hand, independence of the head, and errors."""

from dataclasses import replace

import numpy as np
import pytest

from theory import Architecture, Block, Initialization, bound, predict
from theory.addition_bound import attention_matrix_bounds
from theory.attention_scheme import ATTENTIONS
from theory.block import BLOCKS
from theory.feed_forward import lipschitz


def test_relu_feed_forward_by_hand() -> None:
    arch = Architecture(num_layers=2, d_model=64, activation="relu", norm_epsilon=0.0, initialization="megatron")
    std = np.array([0.5, 0.6, 0.7, 0.8, 0.9])
    found = bound(arch, shortcut_std=std)
    assert found.sublayer.shape == (4,) and found.heads.shape == (2,)
    assert found.sublayer[1::2] == pytest.approx(1 + 3.6 / (np.sqrt(2 * 2) * std[1:4:2]), rel=1e-12)
    assert found.product == pytest.approx(np.prod(found.sublayer), rel=1e-12)
    assert found.log10_product == pytest.approx(np.log10(found.sublayer).sum(), rel=1e-12)


def test_epsilon_adds_to_the_variance() -> None:
    std = np.full(3, 0.3)
    with_epsilon = bound(Architecture(num_layers=1, norm_epsilon=0.16), shortcut_std=std).sublayer - 1
    without = bound(Architecture(num_layers=1, norm_epsilon=0.0), shortcut_std=std).sublayer - 1
    assert with_epsilon == pytest.approx(without * 0.3 / 0.5, rel=1e-12)


def test_the_product_may_overflow_and_its_logarithm_does_not() -> None:
    found = bound(Architecture(num_layers=300), shortcut_std=np.full(601, 1e-3))
    assert found.product == np.inf and 308 < found.log10_product < 10_000


def test_sigma_comes_from_predict_and_the_head_does_not_matter() -> None:
    arch = Architecture(num_layers=2, d_model=32, num_heads=2, vocab_size=64, seq_len=16)
    assert np.array_equal(bound(arch).shortcut_std, predict(arch).shortcut_std)
    tied, std = replace(arch, tied=True), predict(arch).shortcut_std
    assert np.array_equal(bound(arch).sublayer, bound(tied, shortcut_std=std).sublayer)
    np.testing.assert_allclose(predict(tied).shortcut_std, std, rtol=5e-3)  # of other draws of the tokens


@pytest.mark.parametrize("initialization", ["megatron", "gpt2", "xavier", "he", "lecun", "palm", "small", "wang"])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_every_initialisation_is_bounded(initialization: str, norm: str) -> None:
    arch = Architecture(num_layers=2, initialization=initialization, norm=norm, num_kv_heads=2, seq_len=4096)
    found = bound(arch, shortcut_std=np.ones(5)).sublayer
    assert np.all(np.isfinite(found)) and np.all(found > 1)


def test_errors() -> None:
    arch = Architecture(num_layers=1)
    with pytest.raises(ValueError, match=r"method: unknown value 'guess'; choose one of paper"):
        bound(arch, method="guess", shortcut_std=np.ones(3))
    with pytest.raises(ValueError, match=r"shortcut_std: must have shape \(3,\)"):
        bound(arch, shortcut_std=np.ones(2))
    with pytest.raises(ValueError, match="shortcut_std: must be positive"):
        bound(arch, shortcut_std=np.zeros(3))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_arrangement_has_a_paper_bound(block: str, attention: str) -> None:
    arch = Architecture(num_layers=1, block=block, attention=attention, activation="swiglu")
    found = bound(arch, shortcut_std=np.ones(arch.num_sublayers + 1)).sublayer
    assert found.shape == (arch.num_sublayers,) and np.all(np.isfinite(found)) and np.all(found > 0)


def test_shortcut_and_branch_factors_by_hand() -> None:
    """ReLU feed-forward at a stream of 0.5: pre-LN's excess times b, after a."""
    std = np.full(5, 0.5)
    plain = bound(Architecture(num_layers=2, activation="relu"), shortcut_std=std).sublayer - 1
    deep = bound(Architecture(num_layers=2, activation="relu", block="deep_scale_lm"), shortcut_std=std).sublayer
    assert deep == pytest.approx(np.sqrt(3 / 4) + plain / 2, rel=1e-12)
    assert bound(Architecture(num_layers=2, block="rezero"), shortcut_std=std).sublayer == pytest.approx(1.0)


def test_high_probability_grows_with_the_probability_and_refuses_by_name() -> None:
    arch = Architecture(num_layers=2)
    low, high = (bound(arch, "high_probability", p).sublayer for p in (0.5, 0.999999))
    assert np.all(low < high) and np.all(low > bound(arch).sublayer)
    with pytest.raises(ValueError, match="probability: must lie in"):
        bound(arch, "high_probability", 1.0)


_MINE = Initialization("mine", 0.05, {}, "a test")


def _half(**fields: object) -> tuple[np.ndarray, float, float]:
    """Of d 16, d_ff 64, 8 tokens, std 0.05 in every matrix and a stream of 0.5: bounds of attention and feed-forward,
    the bound on the heads, and the norm of a 16 x 64 matrix."""
    arch = Architecture(
        num_layers=1, d_model=16, num_heads=2, norm="rms_norm",
        **{"norm_epsilon": 0.0, "activation": "relu", "seq_len": 8, "initialization": _MINE} | fields,
    )  # fmt: skip
    found = bound(arch, shortcut_std=np.full(3, 0.5))
    return found.sublayer, float(found.heads[0]), 0.05 * (4 + 8)


def test_norms_on_the_output_by_hand() -> None:
    """The shortest rows that they see: 0.05^2 times d and the root of d_ff / 2, or of an even mean of 8 values."""
    sublayer, heads, norm = _half(block="sandwich")
    row = 0.05**2 * 16 / np.sqrt(8)
    assert sublayer[0] == pytest.approx(1 + 0.05 * 8 * heads / 0.5 / row, rel=1e-9)
    assert sublayer[1] == pytest.approx(1 + norm**2 / 0.5 / (0.05**2 * np.sqrt(16 * 64 / 2)), rel=1e-9)


def test_norms_before_the_last_matrix_by_hand() -> None:
    sublayer, heads, norm = _half(block="sub_ln")
    assert sublayer[0] == pytest.approx(1 + 0.05 * 8 * heads / 0.5 / (0.05 * 4 / np.sqrt(8)), rel=1e-9)
    assert sublayer[1] == pytest.approx(1 + norm**2 / 0.5 / (0.05 * 4 / np.sqrt(2)), rel=1e-9)


def test_both_norms_before_and_after_the_last_matrix_by_hand() -> None:
    """What the inner norm returns is 1 a coordinate, so the outer one sees 0.05 sqrt(d_ff)."""
    both = Block("both", inner_norm=True, output_norm=True)
    assert _half(block=both)[0][1] == pytest.approx(1 + 0.6**2 / 0.5 / (0.2 / np.sqrt(2)) / 0.4, rel=1e-9)


def test_a_norm_after_the_sum_by_hand() -> None:
    sublayer, heads, norm = _half(block="post_ln")
    added = 0.5 * 0.05**2 * np.array([16 / np.sqrt(8), np.sqrt(16 * 64 / 2)])
    inside = 1 + np.array([0.05 * 8 * heads, norm**2])
    assert sublayer == pytest.approx(inside / np.sqrt(0.25 + added**2), rel=1e-9)


def test_a_gated_unit_by_hand() -> None:
    largest = 0.05 * 4 * np.sqrt(2 * np.log(2 * 64 * 8))
    sublayer, _, norm = _half(activation="swiglu", d_ff=64)
    assert sublayer[1] == pytest.approx(1 + norm**2 * largest * 2 * lipschitz("swiglu") / 0.5, rel=1e-9)


def test_a_clip_may_leave_nothing_of_even_attention() -> None:
    """1.06 / 64 - 0.03 is below 0: the norm of a row of zeros divides by the root of its epsilon."""
    sublayer, heads, _ = _half(block="sandwich", attention="soft_clip", seq_len=64, norm_epsilon=0.04)
    assert sublayer[0] == pytest.approx(1 + 0.05 * 8 * heads / np.sqrt(0.25 + 0.04) / 0.2, rel=1e-9)


@pytest.mark.parametrize(("attention", "kind"), [("qk_norm", "query"), ("qk_norm", "key"), ("qkv_norm", "value")])
def test_a_norm_on_a_projection_hides_its_size(attention: str, kind: str) -> None:
    larger = Initialization("larger", 0.05, {f"attention.{kind}": 0.15}, "a test")
    plain, other = (_half(attention=attention, initialization=rules)[1] for rules in (_MINE, larger))
    assert plain == pytest.approx(other, rel=1e-9)
    assert _half(initialization=larger)[1] > 1.001 * _half()[1]


def test_an_attention_matrix_by_hand() -> None:
    """Columns sum to exp(1/2) times 1 + 1/2 + 1/3 + 1/4 at logits of std 1, to no more than T at sharp ones."""
    column = np.exp(0.5) * 25 / 12
    assert attention_matrix_bounds(4, 1.0) == pytest.approx((np.sqrt(column), column), rel=1e-12)
    assert attention_matrix_bounds(4, 1e6) == pytest.approx((2, 4), rel=1e-12)
    uniform = attention_matrix_bounds(4096, 0.0)
    assert uniform[0] == pytest.approx(2, rel=1e-12)
