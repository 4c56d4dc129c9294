"""Property tests of schemes: right ones pass, planted mistakes are caught where they should be, and it can be read."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy as sp

import models
from models.initialization import assemble
from theory import Architecture, Block, Embedding, Initialization
from theory.block import BLOCKS
from theory.embedding import EMBEDDINGS
from theory.initialization import INITIALIZATIONS, MATRIX_KINDS
from theory.notation import N, d, fan_in, layer
from verify import properties
from verify.properties import PROPERTIES, Limits, Model, Violation, as_scheme, check
from verify.properties.check import held
from verify.properties.faults import FAULTS

ODD = Architecture(
    num_layers=3, d_model=16, num_heads=4, num_kv_heads=2, d_ff=20, vocab_size=7, seq_len=6, norm="rms_norm",
    positions="learned", activation="swiglu", initialization="small", embedding="vanilla",
)  # fmt: skip
HE = Initialization("he_everywhere", (2 / fan_in) ** sp.Rational(1, 2), {}, "a test")
BY_WIDTH = Initialization("by_width", d ** sp.Rational(-1, 2), {}, "a test")
QUICK = Limits(examples=2, networks=1, seconds=0.0)
OF_WEIGHTS = [name for name, each in PROPERTIES.items() if not each.costly and name != "layouts"]


def cycled(registry, start):
    """As many as there are initialisations, so that all of the registry are met."""
    return [list(registry)[(start + i) % len(registry)] for i in range(len(INITIALIZATIONS))]


@pytest.mark.parametrize(
    ("name", "embedding", "block"), [*zip(INITIALIZATIONS, cycled(EMBEDDINGS, 1), cycled(BLOCKS, 0), strict=True)]
)
def test_every_registered_scheme_draws_what_it_declares(name, embedding, block):
    """With every embedding and in every block, in each property of the weights, at the default rate of false alarms."""
    scheme, arch = as_scheme(name), dataclasses.replace(ODD, embedding=embedding, block=block)
    for tested in OF_WEIGHTS:
        assert PROPERTIES[tested](scheme, arch=arch, seed=3).outcome == "tested"


def test_neither_block_nor_embedding_changes_what_an_initialization_draws():
    """So that what holds of each with some block and embedding holds of it with all; a table may have its own rule."""
    base = Architecture(
        num_layers=2, d_model=4, num_heads=1, vocab_size=3, seq_len=2, norm="rms_norm", positions="learned",
        activation="swiglu", embedding="vanilla",
    )  # fmt: skip
    drawn = jax.device_get(models.init(jax.random.key(0), base).matrices)
    for name, method, block in itertools.product(INITIALIZATIONS, EMBEDDINGS, BLOCKS):
        plain = dataclasses.replace(base, initialization=name)
        arch = dataclasses.replace(plain, embedding=method, block=block)
        own = EMBEDDINGS[method].table_std is not None
        for kind in MATRIX_KINDS:
            if kind == "embedding" and own:
                assert arch.truncation(kind) is None and arch.rule(kind) == EMBEDDINGS[method].table_std
            else:
                np.testing.assert_array_equal(arch.std(kind), plain.std(kind))
                assert arch.truncation(kind) == plain.truncation(kind)
        if name == base.initialization:
            for kind, weight in models.init(jax.random.key(0), arch).matrices.items():
                assert np.array_equal(weight, drawn[kind]) != (kind == "embedding" and own)


@pytest.mark.parametrize(("block", "embedding"), [*zip(BLOCKS, cycled(EMBEDDINGS, 0), strict=False)])
def test_every_block_is_finite_in_half_precision(block, embedding):
    arch = dataclasses.replace(ODD, embedding=embedding, block=block, num_layers=2)
    limits = Limits(dtypes=("float16",))
    assert properties.finite("megatron", arch=arch, limits=limits).outcome == "tested"


def firsts(of):
    """The first fault of each that this tells apart."""
    found = {}
    for name, fault in FAULTS.items():
        found.setdefault(of(fault), name)
    return found.values()


# one of every kind of mistake, and one for every property
SOME_FAULTS = sorted(
    {*firsts(lambda fault: getattr(fault.mistake, "func", None)), *firsts(lambda fault: fault.caught_by)}
)


@pytest.mark.parametrize("name", SOME_FAULTS)
def test_planted_faults_are_caught_where_they_should_be(name):
    """The first architecture that shows a fault must do; `benchmarks/planted_faults.py` runs the whole search."""
    fault = FAULTS[name]
    tested, limits = PROPERTIES[fault.caught_by], Limits(networks=1, seconds=0.0, layouts=fault.layouts)
    if tested.costly or "tied" in name:  # a tied table is one of what a search draws
        finding = tested.search(fault.planted(), limits, 1, **fault.held).violation.finding
    else:
        with pytest.raises(Violation) as found:
            tested(fault.planted(), arch=dataclasses.replace(ODD, **fault.held), seed=1, limits=limits)
        finding = found.value.finding
    assert not finding.low <= finding.measured <= finding.high


def test_every_property_has_a_planted_fault():
    assert {fault.caught_by for fault in FAULTS.values()} == set(PROPERTIES)


def test_a_counterexample_is_small_and_says_everything(capsys):
    scheme = FAULTS["layers counted as inputs"].planted()
    result = properties.declared_std.search(scheme, Limits(examples=10, seconds=60))
    violation = result.violation
    assert result.outcome == "failed" and violation.arch.num_layers == 2 and violation.arch.d_model == 4
    text = str(violation)
    for part in ("layers counted as inputs: declared_std fails", "feed_forward.up, layer", "measured", "allowed",
                 "as if the layers counted as inputs", "num_layers=2", "theory derive feed_forward_bound",
                 "seed="):  # fmt: skip
        assert part in text, text
    with pytest.raises(Violation) as again:
        properties.declared_std(scheme, arch=violation.arch, seed=violation.seed)
    assert again.value.finding.measured == violation.finding.measured


def test_the_same_seed_gives_the_same_search():
    fault = FAULTS["a mean of 0.1"].planted()
    first, second = (properties.zero_mean.search(fault, Limits(examples=3, seconds=0.0), 7) for _ in range(2))
    assert str(first.violation) == str(second.violation)


@pytest.mark.parametrize(
    ("given", "declared"),
    [
        (jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal"), HE),
        ({"default": jax.nn.initializers.normal(0.02)}, "llama"),
        (lambda: jax.nn.initializers.normal(0.02), "llama"),
        (lambda: "small", None),
        (lambda arch: {"default": jax.nn.initializers.normal(arch.d_model**-0.5)}, BY_WIDTH),
        (Model(lambda key, arch: models.init(key, arch)), "small"),
        ("jax.nn.initializers:orthogonal", None),
    ],
)  # fmt: skip
def test_every_form_of_a_scheme(given, declared):
    scheme = as_scheme(given, declared)
    for name in ("declared_std", "zero_mean", "determined_by_key", "independent_matrices", "exchangeable"):
        result = PROPERTIES[name].search(scheme, Limits(examples=1))
        assert result.outcome == ("not applicable" if name == "declared_std" and scheme.declared is None else "tested")


def test_an_initializer_is_held_to_a_declared_rule():
    with pytest.raises(Violation, match=r"declared_std fails[\s\S]*as if it were|times the declared|as if"):
        properties.declared_std(jax.nn.initializers.normal(0.02), declared="he", limits=QUICK)


def test_a_stacked_draw_counts_its_layers_as_inputs():
    """JAX's own default; with batch_axis it does not."""
    stacked = Limits(examples=2, layouts=("stacked",))
    with pytest.raises(Violation, match=r"drawn stacked, 3 at once[\s\S]*batch_axis=0"):
        properties.layouts(jax.nn.initializers.he_normal(), limits=stacked)
    with_axis = {"default": _for_either(jax.nn.initializers.he_normal)}
    assert properties.layouts(with_axis, limits=stacked).outcome == "tested"
    assert properties.layouts(
        jax.nn.initializers.lecun_normal(), limits=Limits(examples=2, layouts=("fused",))
    ).examples
    assert "layouts=" in properties.layouts("jax.nn.initializers:he_normal", limits=QUICK).reason


def _for_either(make):
    return lambda key, shape, dtype: make(batch_axis=0 if len(shape) == 3 else ())(key, shape, dtype)


def test_a_fixed_std_does_not_scale_with_the_width():
    with pytest.raises(Violation, match=r"gain of \w+\.\w+ at d_model 16 over that at 4: measured (1\.9|2\.0)"):
        properties.width_scaling("gpt2", limits=QUICK)
    result = properties.width_scaling("small", limits=QUICK)
    assert result.outcome == "proven" and "SymPy" in result.reason


def test_what_the_embedding_decides_is_found():
    """The paper's claim as a property test: the same rule with a small shortcut, and with a large one."""
    fields = {"num_layers": 8, "norm": "layer_norm", "activation": "gelu", "positions": "none"}
    with pytest.raises(Violation, match=r"large shortcut.*measured 0\.0\d+, allowed 0\.5 to inf; met by a larger emb"):
        properties.two_requirements("megatron", limits=QUICK, embedding="vanilla", **fields)
    assert properties.two_requirements("megatron", limits=QUICK, embedding="scaled", **fields).outcome == "tested"
    with pytest.raises(Violation, match=r"standard deviation of the stream at place"):
        properties.stream_band("xavier", limits=QUICK, embedding=0.01, **fields)
    with pytest.raises(Violation, match=r"gradient norm at the first place over that at the last.*at most 10"):
        properties.amplification("xavier", limits=QUICK, embedding=0.01, **fields)


def test_an_embedding_of_ones_own_is_a_scheme():
    tiny = Embedding("tiny", multiplier=0.001, source="a test")
    with pytest.raises(Violation, match="tiny: two_requirements fails"):
        properties.two_requirements(tiny, limits=QUICK)
    assert properties.two_requirements(Embedding("wide", multiplier=d, source="a test"), limits=QUICK, num_layers=24)


def test_a_block_of_ones_own_is_judged_by_its_own_factors():
    """0.9 is what Megatron's sub-layers of 8 blocks exceed 1 by in pre-LN."""
    with pytest.raises(Violation, match=r"small sub-layers(.|\n)*derive requirements_of_blocks") as failure:
        properties.two_requirements(Block("loud", branch=20, source="a test"), limits=QUICK, d_model=256, d_ff=1024)
    assert failure.value.finding.measured == pytest.approx(20 * 0.9, rel=1e-5)
    assert properties.two_requirements(Block("quiet", branch=1 / N, source="a test"), limits=QUICK).outcome == "tested"


def test_a_deep_network_is_always_tried():
    """Of He's rule only a deep gated one shows it; and where a shallow one does too, that is given."""
    result = properties.amplification.search(as_scheme("he"), Limits(networks=1, seconds=0.0))
    violation = result.violation
    assert violation.arch.num_layers == 8 and violation.arch.activation == "swiglu"
    assert 15 < violation.finding.measured < 20
    for fields in ({"embedding": 0.01}, {"embedding": 0.01, "num_layers": [2, 4], "activation": ["gelu"]}):
        found = properties.amplification.search(as_scheme("he"), Limits(networks=1), **fields).violation.arch
        assert found.num_layers == 2 and found.activation == ("gelu" if "activation" in fields else "swiglu")


def test_the_simplest_network_makes_room_for_the_deep_one(monkeypatch):
    """As many are tried as limits say, and the simplest is found where it fails beside another."""
    met = []

    def noting(scheme, arch, seed, alpha, limits):
        met.append(arch)

    noted = dataclasses.replace(properties.amplification, test=noting)
    assert noted.search(as_scheme("he"), Limits(networks=4)).examples == len(met) == 4
    assert met[0].num_layers == 8 and all(arch.activation != "identity" or arch.num_layers > 2 for arch in met[1:])
    unanchored = dataclasses.replace(noted, anchors=lambda scheme, held: [])
    met.clear()
    assert unanchored.search(as_scheme("he"), Limits(networks=2)).examples == 2 and met[0].num_layers == 2


def test_a_line_that_repeats_names_only_what_is_registered():
    """An embedding of one's own, and a registered one given as an object."""
    for own, shown in ((Embedding("vanilla", multiplier=0.001), "embedding"), (EMBEDDINGS["scaled"], "'scaled'")):
        with pytest.raises(Violation) as found:
            properties.stream_band("xavier", limits=dataclasses.replace(QUICK, std_ratio=1.001), embedding=own)
        assert f"embedding={shown}" in found.value.line()
        assert found.value.undefined() == ("embedding" if shown == "embedding" else "")


def doubled(key, shape, dtype):
    return 2 * jax.random.normal(key, shape, dtype)


@pytest.mark.parametrize(
    ("scheme", "declared", "embedding", "reference", "undefined"),
    [
        (doubled, "he", "vanilla", f"'{__name__}:doubled', declared='he'", ""),
        (doubled, HE, "vanilla", f"'{__name__}:doubled', declared=rule", "rule"),
        (Model(lambda key, arch: models.init(key, dataclasses.replace(arch, initialization="gpt2"))),
         INITIALIZATIONS["he"], Embedding("e", multiplier=2),
         "scheme, declared='he'", "scheme, embedding"),
        (jax.nn.initializers.normal(0.02), HE, 2.5, "scheme, declared=rule", "scheme, rule"),
    ],
)  # fmt: skip
def test_the_line_that_repeats_a_failure_runs(scheme, declared, embedding, reference, undefined):
    with pytest.raises(Violation) as found:
        properties.declared_std(scheme, arch=dataclasses.replace(ODD, embedding=embedding), declared=declared, seed=5)
    first = found.value
    assert f"declared_std({reference}, arch=" in first.line() and first.undefined() == undefined
    said = f"to repeat, with your own {undefined}: " if undefined else "to repeat: "
    assert f"  {said}{first.line()}" in str(first)
    with pytest.raises(Violation) as again:
        exec(first.line(), {name: {"scheme": scheme, "rule": HE, "embedding": embedding}[name]
                            for name in undefined.split(", ") if name})  # fmt: skip
    assert again.value.finding == first.finding


def test_growth_is_derived_or_measured():
    fields = {"activation": "gelu", "norm": "rms_norm", "positions": "none", "bias": False}
    with pytest.raises(Violation, match=r"derived exponent of the amplification \(exp"):
        properties.growth_exponent("xavier", limits=QUICK, block="post_ln", **fields)
    undeclared = jax.nn.initializers.normal(0.3)  # twelve times a block's
    with pytest.raises(Violation, match=r"slope of log amplification in log num_layers, 2 to 8 blocks"):
        properties.growth_exponent(undeclared, limits=QUICK, block="no_norm", num_layers=2, **fields)
    assert properties.growth_exponent("megatron", limits=QUICK).outcome == "proven"


def test_predictions_are_held_to_what_is_drawn():
    """A factor in one matrix that the declared rule does not know."""
    arch = Architecture(num_layers=2, d_model=128, seq_len=8, vocab_size=50, initialization="lecun", embedding="scaled")
    wrong = as_scheme(Model(lambda key, arch: _times(3.0, models.init(key, arch))), "lecun")
    with pytest.raises(Violation, match="measured over predicted"):
        properties.predicted(wrong, arch=arch)
    assert properties.predicted("lecun", arch=arch).outcome == "tested"


def _times(factor, params):
    drawn = params.matrices
    arch = Architecture(num_layers=2, d_model=128, seq_len=8, vocab_size=50)
    return assemble(arch, lambda kind: factor * drawn[kind] if "." in kind else drawn[kind][0])


def _model(**leaves):
    """A model of one's own whose leaves are drawn by these functions of a key."""
    return Model(lambda key: {name: draw(key) for name, draw in leaves.items()})


def _normal(*shape):
    return lambda key: jax.random.normal(key, shape)


def test_what_is_constant_is_no_matrix():
    model = _model(w=_normal(8, 8), scales=lambda key: jnp.ones((2, 8)))
    assert properties.determined_by_key(model, arch=ODD).outcome == "tested"


def test_what_is_constant_has_a_mean():
    """Weights of that name, and a matrix of our Transformer; not the scales of a norm, found by their path."""
    named = Model(lambda key: jnp.ones((4, 4)), matrices=lambda params: {"mine": params})
    for scheme, kind in ((jax.nn.initializers.ones, "attention.key"), (named, "mine")):
        with pytest.raises(
            Violation, match=f"mean of {kind}.*, whose entries are all the same: measured 1, allowed 0 to 0"
        ):
            properties.zero_mean(scheme, arch=ODD)
    with pytest.raises(Violation, match="spectral norm of"):
        properties.spectral_norm(jax.nn.initializers.ones, arch=dataclasses.replace(ODD, d_ff=400))
    only_scales = properties.zero_mean(_model(scales=lambda key: jnp.ones((2, 8))), arch=ODD)
    assert only_scales.outcome == "not applicable" and "not constant" in only_scales.reason


def test_nothing_is_tested_of_zeros():
    zeros = as_scheme(jax.nn.initializers.zeros)
    for name in OF_WEIGHTS:
        found = PROPERTIES[name].search(zeros, Limits(examples=2), d_model=4, num_heads=1)
        assert found.outcome == "not applicable" and found.examples == 0, found
    assert properties.zero_mean("zero_output", arch=ODD).outcome == "tested"
    with pytest.raises(Violation, match=r"measured 0, allowed 0\.\d"):
        properties.declared_std(jax.nn.initializers.zeros, arch=ODD, declared="he")


def test_one_matrix_depends_on_no_other():
    assert properties.independent_matrices(_model(w=_normal(8, 8)), arch=ODD).reason == "there is one matrix"


def test_an_architecture_where_nothing_is_tested_hides_no_other():
    def some(arch):
        return jax.nn.initializers.normal(1.0) if arch.num_layers > 1 else jax.nn.initializers.zeros

    found = properties.zero_mean.search(as_scheme(some), Limits(examples=6), d_model=4, num_heads=1, num_layers=[1, 2])
    assert found.outcome == "tested" and 0 < found.examples < 6


@pytest.mark.parametrize(("kind", "topic"), [("attention.value", "attention_bound"), ("mine", None)])
def test_only_a_derivation_of_the_matter_is_named(kind, topic):
    shifted = Model(lambda key: 1 + _normal(8, 8)(key), matrices=lambda params: {kind: params})
    twice = Model(lambda key: jnp.stack([_normal(8, 8)(key)] * 2), matrices=lambda params: {kind: params})
    for name, scheme, derivation in (("zero_mean", shifted, topic), ("independent_matrices", twice, None)):
        with pytest.raises(Violation) as found:
            PROPERTIES[name](scheme, arch=ODD)
        assert ("why it matters" in str(found.value)) == bool(derivation)
        assert not derivation or f"theory derive {derivation}\n" in str(found.value)


def test_what_is_no_number_is_said():
    model = _model(w=lambda key: jnp.full((4, 4), jnp.nan).at[0, 0].set(jax.random.normal(key)))
    for name in ("zero_mean", "spectral_norm", "independent_entries"):
        with pytest.raises(Violation, match=r"entries of \['w'\] that are not finite: measured"):
            PROPERTIES[name](model, arch=ODD)


def test_a_counter_beside_the_key_is_found():
    calls = iter(range(100))
    model = _model(w=lambda key: jax.random.normal(jax.random.fold_in(key, next(calls)), (8, 8)))
    with pytest.raises(Violation, match="programs that two calls with one key gave"):
        properties.determined_by_key(model, arch=ODD)
    large = _model(w=lambda key: jax.random.normal(jax.random.key(0), (130, 130)))
    with pytest.raises(Violation, match="the key is not used"):
        properties.determined_by_key(large, arch=ODD)


def test_layers_may_have_standard_deviations_of_their_own():
    falling = Initialization("falling", 1 / (layer**2 * d), {"embedding": 1 / d, "position": 1 / d, "head": 1 / d}, "x")
    for seed in range(5):
        arch = dataclasses.replace(ODD, num_layers=12)
        assert properties.determined_by_key(falling, arch=arch, seed=seed).outcome == "tested"


def test_what_a_rule_does_not_name_is_not_held_to_it():
    result = properties.declared_std(_model(w=_normal(8, 8)), arch=ODD, declared="he")
    assert result.outcome == "not applicable" and "['w']" in result.reason
    named = Model(lambda key: _normal(30, 10)(key), matrices=lambda params: {"feed_forward.up": params})
    with pytest.raises(Violation, match=r"allowed 0\.25\d+ to 0\.26"):
        properties.declared_std(named, arch=ODD, declared="he")  # by its own fan-in: (2 / 30)^(1/2)


def test_a_matrix_that_should_be_zero():
    with pytest.raises(Violation, match=r"attention\.output.*allowed 0 to 0; declared 0"):
        properties.declared_std(jax.nn.initializers.normal(0.3), arch=ODD, declared="zero_output")


def test_a_rule_that_is_cut_off_is_so_for_a_callable_too():
    hidden = Initialization("cut", 1 / fan_in ** sp.Rational(1, 2), {}, "x", dict.fromkeys(["attention.query"], 2.0))
    model = Model(
        lambda key: jax.nn.initializers.lecun_normal()(key, (16, 16)), matrices=lambda w: {"attention.query": w}
    )
    assert properties.distribution(model, arch=ODD, declared=hidden, distribution="normal").outcome == "tested"


def test_a_normal_law_that_jax_cuts_off_is_another_than_a_whole_one():
    """`he_normal` and its siblings are cut off at two standard deviations, `normal` is not."""
    cut, whole = jax.nn.initializers.he_normal(), jax.nn.initializers.normal(0.1)
    assert properties.distribution(cut, arch=ODD, distribution="truncated_normal").outcome == "tested"
    assert properties.distribution(whole, arch=ODD, distribution="normal").outcome == "tested"
    for scheme, law in ((cut, "normal"), (whole, "truncated_normal")):
        with pytest.raises(Violation, match=f"from the declared {law} law"):
            properties.distribution(scheme, arch=ODD, distribution=law)


def test_embeddings_and_blocks_go_through_what_is_proven():
    for scheme in (Embedding("wide", multiplier=d, source="a test"), BLOCKS["pre_ln"]):
        found = check(
            scheme, limits=Limits(examples=1, networks=1), only=("width_scaling", "growth_exponent"), d_model=12
        )
        assert [result.outcome for result in found.results] == ["tested", "proven"]


def test_what_the_scheme_decides_cannot_be_held():
    with pytest.raises(ValueError, match="initialization: decided by the scheme he"):
        properties.zero_mean("he", limits=QUICK, initialization="small")
    with pytest.raises(ValueError, match=r"activation: unknown value 'gellu'"):
        properties.zero_mean("he", limits=QUICK, activation="gellu")
    for wrong in ({"examples": 0}, {"layouts": ("stakced",)}, {"amplification": 0.0}, {"std_ratio": -1.0},
                  {"growth_exponent": float("nan")}, {"false_alarms": 0.0}):  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}: "):
            Limits(**wrong)


def test_wrong_names_are_named():
    with pytest.raises(ValueError, match="property: unknown name 'speed'"):
        check("he", only=["speed"])
    with pytest.raises(ValueError, match="d_modle: no field of Architecture"):
        properties.zero_mean("he", limits=QUICK, d_modle=3)
    with pytest.raises(ValueError, match="num_heads: d_model = 7 is not divisible by 2"):
        properties.zero_mean("he", limits=QUICK, d_model=7, num_heads=2)
    with pytest.raises(ValueError, match="hold: expected FIELD=VALUE"):
        held(["embedding"])
    assert held(["embedding=vanilla", "num_layers=3", "tied=true"]) == {
        "embedding": "vanilla", "num_layers": 3, "tied": True,
    }  # fmt: skip
