"""The theory's bounds at initialisation against the networks that they bound."""

import jax
import numpy as np
import pytest
from hypothesis import Phase, assume, example, given, settings
from hypothesis import strategies as st

import models
from models.linear import as_matrices
from theory import Architecture, bound, logit_bounds
from theory.activation import ACTIVATIONS
from theory.architecture import NORMS, POSITIONS
from theory.attention_scheme import ATTENTIONS
from theory.block import BLOCKS
from theory.embedding import EMBEDDINGS
from theory.initialization import INITIALIZATIONS
from verify.measurement import logit_bound
from verify.measurement.jacobian import sublayer_jacobian_norms

SIZES = {"num_layers": 2, "d_model": 12, "num_heads": 2, "vocab_size": 7, "seq_len": 6}


@st.composite
def bounded_architectures(draw):
    """From all arrangements and schemes."""
    pick = {
        "block": list(BLOCKS),
        "attention": list(ATTENTIONS),
        "activation": list(ACTIVATIONS),
        "norm": NORMS,
        "positions": POSITIONS,
        "initialization": list(INITIALIZATIONS),
        "embedding": [*EMBEDDINGS, 0.3],
        "num_kv_heads": [None, 1],
    }
    fields = {name: draw(st.sampled_from(values)) for name, values in pick.items()}
    assume(not (fields["initialization"] == "zero_output" and fields["attention"] == "sigma_reparam"))
    return Architecture(**SIZES, **fields)


@settings(max_examples=3, deadline=None, phases=[Phase.explicit, Phase.generate])  # shrinking would compile for minutes
@given(bounded_architectures(), st.integers(0, 10_000))
@example(Architecture(**SIZES, block="deepnorm", attention="sigma_reparam", activation="swiglu"), 1)
@example(Architecture(**SIZES, block="sandwich", attention="qk_fc_norm", initialization="olmo2"), 1)
@example(Architecture(**SIZES, block="post_ln", attention="qk_norm", norm="rms_norm", initialization="he"), 1)
def test_high_probability_is_above_every_measured_norm(arch, first_seed):
    """At 0.999 of all networks: three of them. Near 1 both agree to the rounding of float32."""
    norms, _ = sublayer_jacobian_norms(arch, seeds=3, iterations=40, first_seed=first_seed)
    assert np.all(norms < bound(arch, "high_probability", 0.999).sublayer * (1 + 1e-5)), arch


@pytest.mark.parametrize(
    ("attention", "block"), [("standard", "pre_ln"), ("qk_norm", "output_norm"), ("sigma_reparam", "sandwich"),
                             ("soft_temp", "ln_scaling"), ("soft_cap", "parallel"), ("standard", "no_norm")]
)  # fmt: skip
def test_logit_limits_are_those_of_sampled_weights(attention, block):
    """Norms in expectation against one draw's own; without norms a typical stream against the largest there can be."""
    arch = Architecture(
        num_layers=3, d_model=128, vocab_size=100, seq_len=8, block=block, attention=attention, initialization="he"
    )
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), as_matrices(models.init(jax.random.key(0), arch)))
    layers = [jax.tree.map(lambda leaf, n=n: leaf[n], exact.blocks) for n in range(3)]
    limits, (attention_logit, output_logit) = logit_bounds(arch), logit_bound.logit_bounds(exact, layers, arch)
    if block == "no_norm":
        assert np.all(limits.attention_logit < attention_logit) and limits.output_logit < output_logit
        tokens = jax.random.randint(jax.random.key(1), (4, 8), 0, 100)
        params = models.init(jax.random.key(0), arch)
        seen = jax.jit(lambda: models.apply(params, tokens, arch)[1].attention.largest_logit)()
        assert np.all(limits.attention_logit[:, None] > np.asarray(seen))
    else:
        np.testing.assert_allclose(limits.attention_logit, attention_logit, rtol=0.2)
        np.testing.assert_allclose(limits.output_logit, output_logit, rtol=0.1)
