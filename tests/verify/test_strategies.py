"""Strategies draw what their arguments allow, stand for their types, and shrink to what is plain."""

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import models
from theory import Architecture, Embedding
from theory.block import BLOCKS, Block
from theory.initialization import INITIALIZATIONS
from verify.properties import Widths, architectures, embeddings, token_batches, weights

ODD = Architecture(num_layers=3, d_model=16, d_ff=20, num_heads=4, vocab_size=7, seq_len=6, initialization="small")

quietly = settings(max_examples=60, phases=[Phase.generate], suppress_health_check=list(HealthCheck))


@quietly
@given(st.data())
def test_strategies_draw_what_they_say(data):
    arch = data.draw(architectures(widths=(Widths(8, 2, 1, 32, 11, 4),), depths=(1, 2), block=["pre_ln", "post_ln"]))
    assert arch.num_layers in (1, 2) and arch.d_model == 8 and arch.block in ("pre_ln", "post_ln")
    tokens = data.draw(token_batches(arch, (2, 3)))
    assert tokens.shape[0] in (2, 3) and tokens.shape[1] == 5 and tokens.min() >= 0 and tokens.max() < 11
    method = data.draw(embeddings(multipliers=(0.5, 2.0)))
    assert method.name in ("vanilla", "scaled", "layer_norm", "detach", "unit") or 0.5 <= method.multiplier <= 2


@settings(max_examples=5, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(data=st.data(), arch=...)
def test_types_have_strategies(data, arch: Architecture):
    assert arch.initialization in INITIALIZATIONS and isinstance(data.draw(st.from_type(Embedding)), Embedding)
    assert data.draw(st.from_type(Block)) in BLOCKS.values()
    params = data.draw(weights(ODD, scales=(2.0, 2.0)))
    np.testing.assert_allclose(np.std(params.matrices["feed_forward.up"]), 2 * ODD.std("feed_forward.up")[0], rtol=0.3)


@settings(max_examples=1, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(params=...)
def test_parameters_have_a_strategy(params: models.Transformer):
    assert "head" in params.matrices and params.matrices["attention.query"].shape == (1, 4, 4)


def test_shrinking_goes_to_the_plainest():
    from hypothesis import find

    arch = find(architectures(), lambda arch: arch.num_layers >= 2, settings=settings(database=None))
    assert (arch.num_layers, arch.d_model, arch.block, arch.norm, arch.attention) == (
        2, 4, "pre_ln", "layer_norm", "standard",
    )  # fmt: skip
    assert arch.activation == "identity" and not arch.bias and not arch.tied and arch.positions == "none"
