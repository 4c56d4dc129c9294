"""Parameters counted by hand; tests/models counts the arrays of a model."""

from theory import Architecture
from theory.parameter_count import num_parameters

SIZES = {"num_layers": 1, "d_model": 8, "num_heads": 2, "d_ff": 16, "vocab_size": 10, "norm": "rms_norm"}


def test_norms_inside_the_sub_layers_are_as_wide_as_what_they_norm() -> None:
    """One before either sub-layer, one d_model wide in attention, one d_ff wide in the feed-forward, the last."""
    matrices = 4 * 8 * 8 + 2 * 8 * 16 + 2 * 10 * 8
    assert num_parameters(Architecture(block="sub_ln", **SIZES)) == matrices + 8 + 8 + 8 + 16 + 8
    assert num_parameters(Architecture(block="pre_ln", **SIZES)) == matrices + 8 + 8 + 8
