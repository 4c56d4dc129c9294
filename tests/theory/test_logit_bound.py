"""`logit_bounds`: by hand, what each variant's limit grows with, and what the stream does to it."""

import numpy as np
import pytest

from theory import Architecture, logit_bounds, predict
from theory.attention_scheme import ATTENTIONS
from theory.block import BLOCKS

SMALL = {"num_layers": 2, "d_model": 64, "num_heads": 4, "vocab_size": 50, "seq_len": 8}


def test_a_norm_before_attention_by_hand() -> None:
    arch = Architecture(**SMALL, initialization="llama", logit_scale=0.5)
    found = logit_bounds(arch)
    assert found.attention_logit == pytest.approx([0.02**2 * (8 + 4) ** 2 * 64 / 4] * 2, rel=1e-12)
    assert found.output_logit == pytest.approx(0.5 * 8 * 0.02 * (8 + np.sqrt(2 * np.log(50))), rel=1e-12)
    scaled = logit_bounds(Architecture(**SMALL, initialization="llama", block="ln_scaling"))
    assert scaled.attention_logit == pytest.approx(found.attention_logit / [1, 2], rel=1e-12)


@pytest.mark.parametrize(
    ("attention", "limit"),
    [
        ("qk_norm", 4.0),
        ("qk_norm_cap", 50 * np.tanh(4 / 50)),
        ("soft_temp", 0.5 * 0.5**2 * 144 * 16),
        ("mup_attention", 0.5**2 * 144 * 16 / 16**0.5),
        ("soft_cap", 50 * np.tanh(0.5**2 * 144 * 16 / 50)),
        ("sigma_reparam", 16.0),  # one head's part of a matrix of norm 1, at one head of all the width
    ],
)
def test_variants_by_hand(attention: str, limit: float) -> None:
    from theory import Initialization

    arch = Architecture(**SMALL, attention=attention, initialization=Initialization("half", 0.5, {}, "a test"))
    found = logit_bounds(arch).attention_logit
    if attention == "sigma_reparam":
        assert np.all(found < limit) and np.all(found > limit / 3)
        assert logit_bounds(Architecture(**SMALL | {"num_heads": 1}, attention=attention)).attention_logit[0] == 8.0
    else:
        assert found == pytest.approx([limit] * 2, rel=1e-12)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_stream_matters_where_no_norm_caps_it(block: str, attention: str) -> None:
    """A stream twice as large: four times the logits, but for those that say they do not grow with it."""
    arch = Architecture(**SMALL, block=block, attention=attention)
    one, two = (logit_bounds(arch, np.full(arch.num_sublayers + 1, std)) for std in (1.0, 2.0))
    grows = {"weights and stream": 4, "gains and stream": 4}.get(one.attention_grows_with, 1)
    if block in ("post_ln", "deepnorm", "deepnorm_glm") and one.attention_grows_with in ("weights", "gains"):
        grows = 4  # of a stream given as it never is after such a block's norm
    if one.attention_grows_with != "nothing":
        assert two.attention_logit == pytest.approx(grows * one.attention_logit, rel=1e-12)
    assert one.attention_grows_with.endswith("stream") == (
        ATTENTIONS[attention].cap is None
        and not ATTENTIONS[attention].normed
        and block in ("output_norm", "rezero", "no_norm")
    )
    free = block in ("rezero", "no_norm")
    assert one.output_grows_with == ("weights and stream" if free else "weights")


def test_the_stream_is_predicted_place_by_place() -> None:
    arch = Architecture(**SMALL, block="no_norm", initialization="xavier")
    std, found = predict(arch).shortcut_std, logit_bounds(arch)
    assert found.attention_logit[1] / found.attention_logit[0] == pytest.approx((std[2] / std[0]) ** 2, rel=1e-12)
    assert found.output_logit == logit_bounds(arch, std).output_logit
    assert found.output_logit / logit_bounds(arch, std * [1, 1, 1, 1, 2]).output_logit == pytest.approx(0.5)


def test_a_tied_head_is_the_table() -> None:
    arch = Architecture(**SMALL, tied=True, initialization="palm")
    assert logit_bounds(arch).output_logit == pytest.approx(8 * (8 + np.sqrt(2 * np.log(50))), rel=1e-12)
