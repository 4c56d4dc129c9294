"""A coordinate check: planted power laws, statistics by hand, and schemes that are known to be right or wrong."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
from models.transformer import addition, embed
from theory import Architecture
from theory.attention_scheme import AttentionScheme
from verify.__main__ import main
from verify.measurement.coordinates import STATISTICS, ladder, measure_coordinates, resized
from verify.measurement.exponents import exponents, lines, scheme_verdict
from verify.report import coordinates
from verify.statistics.intervals import Estimate
from verify.statistics.power_law import PowerLaw, judge, power_law
from verify.training.corpus import load_corpus
from verify.training.optimizer import Optimizer
from verify.training.run import Run

WIDTHS, SEEDS, STEPS = (16, 32, 64), 8, 5
ARCH = Architecture(num_layers=2, d_model=16, num_heads=2, vocab_size=32, seq_len=16)
MUP_ARCH = dataclasses.replace(
    ARCH, initialization="mup", embedding="vanilla", attention=AttentionScheme("over d_head", temperature=8**-0.5)
)
OPTIMIZER = Optimizer(learning_rate=3e-3, schedule="constant", warmup_steps=0, base_d_model=16, weight_decay=0.1)
MUP = dataclasses.replace(OPTIMIZER, parametrization="mup")
RUN = Run(ARCH, OPTIMIZER, corpus="zipf", steps=STEPS)


def measured(arch, optimizer, widths):
    run = dataclasses.replace(RUN, arch=arch, optimizer=optimizer)
    return pd.concat([measure_coordinates(each, SEEDS) for each in ladder(run, widths, ())])


@pytest.fixture(scope="module")
def standard():
    return measured(ARCH, OPTIMIZER, WIDTHS)


@pytest.fixture(scope="module")
def mup():
    return measured(MUP_ARCH, dataclasses.replace(MUP, decay="independent", weight_decay=1e-3), WIDTHS)


@pytest.fixture(scope="module")
def mup_coupled():
    return measured(MUP_ARCH, MUP, WIDTHS[:2])


def planted(axis, sizes, slopes, seeds=4, noise=0.0):
    """A table with the power law of each (statistic, where); log-normal noise from seed to seed."""
    rng = np.random.default_rng(0)
    other = {"width": "depth", "depth": "width"}[axis]
    return pd.DataFrame(
        [
            {axis: size, other: 4, "step": step, "seed": seed, "where": where, "statistic": statistic,
             "value": (1.0 + step) * size**slope * np.exp(noise * rng.standard_normal())}
            for (statistic, where), slope in slopes.items() for size in sizes for seed in range(seeds)
            for step in range(3)
        ]
    )  # fmt: skip


LEVEL = {
    ("activation", "0"): 0.0, ("activation", "4"): 0.0, ("activation", "8"): 0.0, ("activation", "head"): -0.5,
    ("change", "head"): 0.0, ("update", "attention.query"): -1.0,
}  # fmt: skip


@given(
    st.floats(-2, 2),
    st.floats(1e-6, 1e6),
    st.lists(st.integers(1, 4096), min_size=2, max_size=6, unique=True),
    st.integers(2, 5),
)
def test_an_exact_power_law(slope, scale, sizes, seeds):
    sizes = np.array(sizes, float)
    values = np.arange(1, seeds + 1)[:, None] * scale * sizes**slope
    law = power_law(sizes, values)
    ratio = np.log(sizes.max() / sizes.min())
    rounding = 1e-9 / min(ratio, np.diff(np.sort(np.log(sizes))).min()) ** 2  # of the fits, at sizes near each other
    np.testing.assert_allclose([law.slope.value, law.slope.low, law.slope.high], slope, atol=rounding)
    if len(sizes) > 2:
        np.testing.assert_allclose(law.end.value, slope, atol=100 * rounding)
    else:
        assert np.isnan(law.end.value)


def test_the_interval_covers_at_its_level():
    """4,000 repeats of 4 seeds: the covered share has a standard error of 0.34 %, four of them are allowed."""
    sizes, repeats = np.array([1.0, 2.0, 4.0, 8.0]), 4_000
    draws = np.random.default_rng(0).standard_normal((repeats, 4, 4))
    laws = [power_law(sizes, sizes**0.3 * np.exp(0.2 * draw)) for draw in draws]
    covered = np.mean([law.slope.low < 0.3 < law.slope.high for law in laws])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / repeats)


def test_a_parabola_bends_at_its_end():
    sizes = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    x = np.log(sizes / 4)
    law = power_law(sizes, np.exp(0.1 * x**2) * np.array([[1.0], [3.0]]))
    np.testing.assert_allclose([law.slope.value, law.end.value], [0, 0.2 * x[-1]], atol=1e-12)
    assert judge(law, 0.2) == "undecided"
    assert judge(law, 0.3) == "constant"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.1, 0.2, "constant"), (0.21, 0.5, "grows"), (-0.5, -0.21, "shrinks"), (0.1, 0.3, "undecided"),
        (-0.3, -0.1, "undecided"), (-1.0, 1.0, "undecided"), (np.nan, np.nan, "undecided"),
    ],
)  # fmt: skip
def test_verdict_by_the_interval(low, high, expected):
    nowhere = Estimate(np.nan, np.nan, np.nan)
    assert judge(PowerLaw(Estimate((low + high) / 2, low, high), nowhere), 0.2) == expected


@pytest.mark.parametrize("axis", ["width", "depth"])
@pytest.mark.parametrize(("slope", "line", "wrong"), [(0.5, "grows", "drifts"), (-0.5, "shrinks", "drifts")])
def test_a_planted_drift_is_caught(axis, slope, line, wrong):
    sizes = (64, 128, 256)
    level = exponents(planted(axis, sizes, LEVEL, noise=0.03), axis)
    assert scheme_verdict(level) == "stable"
    assert set(level.loc[level["judged"], "verdict"]) == {"constant"}
    assert level.set_index("line").loc["attention.query", ["judged", "verdict"]].tolist() == [False, "shrinks"]
    drifting = exponents(planted(axis, sizes, LEVEL | {("change", "head"): slope}, noise=0.03), axis)
    row = drifting[(drifting["statistic"] == "change")].iloc[0]
    assert row["verdict"] == line and row["low"] < slope < row["high"]
    assert scheme_verdict(drifting) == wrong


def test_noise_is_no_verdict():
    """Where the interval is far wider than the tolerance, at most one line in 20 has a verdict: of 400, 20 +- 4."""
    found = exponents(
        planted("width", (64, 128), {("change", str(line) + "x"): 0.0 for line in range(400)}, noise=1), "width"
    )
    verdicts = found["verdict"].value_counts()
    assert verdicts["undecided"] > 400 - 20 - 4 * 4 and "constant" not in verdicts
    alone = exponents(planted("width", (64, 128), LEVEL, seeds=1), "width")
    assert set(alone["verdict"]) == {"undecided"} and scheme_verdict(alone) == "undecided"


def test_places_are_compared_by_their_share_of_the_depth():
    """The value of a place is 1 + its share of the depth, whatever the depth."""
    rows = [
        {"width": 8, "depth": depth, "step": 0, "seed": seed, "where": str(place), "statistic": "activation",
         "value": 1 + place / (2 * depth)}
        for depth in (1, 2, 8) for seed in range(2) for place in range(2 * depth + 1)
    ]  # fmt: skip
    chosen = lines(pd.DataFrame(rows))
    for line, value in (("first place", 1.0), ("middle place", 1.5), ("last place", 2.0)):
        assert set(chosen.loc[chosen["line"] == line, "value"]) == {value}
    assert np.allclose(exponents(pd.DataFrame(rows), "depth")["slope"], 0)


def test_divergence_is_a_drift_and_what_is_not_there_has_no_row():
    table = planted("width", (64, 128, 256), LEVEL | {("decay", "embedding"): 0.0})
    table.loc[table["statistic"] == "decay", "value"] = 0.0
    table.loc[(table["where"] == "8") & (table["width"] == 256) & (table["seed"] == 1), "value"] = np.nan
    found = exponents(table, "width")
    assert "decay" not in set(found["statistic"])
    assert found.set_index("line").loc["last place", "verdict"] == "diverged"
    assert scheme_verdict(found) == "drifts"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axis": "depth"}, r"table: must have one width and at least 2 of depth, got \[64, 128\] and \[4\]"),
        ({"tolerance": 0.0}, "tolerance: must be a positive number, got 0.0"),
    ],
)
def test_bad_tables(change, message):
    arguments = {"table": planted("width", (64, 128), LEVEL), "axis": "width"} | change
    with pytest.raises(ValueError, match=message):
        exponents(**arguments)


@pytest.mark.parametrize(
    ("sizes", "values"),
    [([1], [[1.0]]), ([2, 2], [[1.0, 1.0]]), ([1, 2], [[1.0, 0.0]]), ([1, 2], [[1.0, np.inf]]), ([1, 2], [[1.0]])],
)
def test_no_power_law(sizes, values):
    with pytest.raises(ValueError, match="must be"):
        power_law(np.array(sizes), np.array(values))


def test_heads_and_shares_stay_as_they_are():
    arch = dataclasses.replace(ARCH, num_heads=4, num_kv_heads=2, d_ff=40)
    wide = resized(arch, 48, 3)
    assert (wide.d_head, wide.num_heads, wide.kv_heads, wide.d_ff, wide.num_layers) == (4, 12, 6, 120, 3)
    plain = resized(ARCH, 64, 2)
    assert (plain.num_kv_heads, plain.d_ff, plain.ff_width) == (None, None, 256)
    with pytest.raises(ValueError, match=r"widths: must be multiples of .* 4 x 2 = 8, got 20"):
        resized(arch, 20, 2)
    with pytest.raises(ValueError, match="widths: must keep d_ff a whole number, which is 33 at 16, got 24"):
        resized(dataclasses.replace(ARCH, d_ff=33), 24, 2)
    sizes = [(run.arch.d_model, run.arch.num_layers) for run in ladder(RUN, (16, 32), (2, 4))]
    assert sizes == [(16, 2), (32, 2), (16, 4)]


def value(table, statistic, where, step, seed=1):
    rows = table[(table["statistic"] == statistic) & (table["width"] == 16) & (table["seed"] == seed)]
    (found,) = rows.loc[(rows["where"] == where) & (rows["step"] == step), "value"]
    return found


def test_statistics_by_hand(standard):
    """Step 0 and the change after it, of one seed, from the model's own parts outside the compiled program."""
    corpus, params = load_corpus("zipf", 32), models.init(jax.random.key(1), ARCH)
    fixed = jnp.asarray(corpus.batch(16, 8, seed=0, step=0, split="held_out"))[:, :-1]
    batch = jnp.asarray(corpus.batch(16, 8, seed=1, step=0))

    @jax.jit
    def forward(params):
        places = [embed(params, fixed, ARCH)]
        for place in range(ARCH.num_sublayers):
            places.append(addition(params, ARCH, place)(places[-1]))
        return places, *models.apply(params, fixed, ARCH)

    @jax.jit
    def step(params):
        gradient, squares = jax.grad(lambda *at: models.loss(at[0], batch, ARCH, at[1])[0], argnums=(0, 1))(
            params, jnp.zeros(ARCH.num_sublayers + 1)
        )
        numbers = OPTIMIZER.numbers(100)
        transformation = OPTIMIZER.transformation(numbers)
        with jax.numpy_dtype_promotion("standard"):
            directions, _ = transformation.update(gradient, transformation.init(params), params)
            return gradient, squares, OPTIMIZER.updates(directions, params, numbers.learning_rate, numbers)

    gradient, squares, update = step(params)
    places, logits, seen = forward(params)
    later, later_logits, _ = forward(jax.tree.map(jnp.add, params, update))

    def rms(x):
        return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))

    def close(statistic, where, expected, step=0):
        np.testing.assert_allclose(value(standard, statistic, where, step), expected, rtol=2e-4, err_msg=where)

    for place in range(ARCH.num_sublayers + 1):
        close("activation", str(place), float(jnp.std(places[place])))
        close("change", str(place), rms(later[place] - places[place]), step=1)
        close("gradient", str(place), float(jnp.sqrt(squares[place] / (8 * 16 * 16))))
    close("activation", "head", rms(logits))
    close("activation", "feed_forward.up", rms(seen.output_norm["feed_forward.up"]))
    close("activation", "attention.logit", float(jnp.mean(seen.attention.largest_logit)))
    close("change", "head", rms(later_logits - logits), step=1)
    for kind, tree in (("gradient", gradient), ("update", update), ("parameter", params)):
        close(kind, "attention.value", rms(tree.blocks.attention.value.weight))
        close(kind, "embedding", rms(tree.embedding))
        close(kind, "head", rms(tree.head.weight))
    close("effective_rate", "head", rms(update.head.weight) / rms(params.head.weight))
    close("decay", "feed_forward.down", 0.1 * 3e-3)
    assert value(standard, "change", "head", 0) == value(standard, "change", "4", 0) == 0


def test_the_table_is_tidy(standard):
    assert list(standard.columns) == ["width", "depth", "step", "seed", "where", "statistic", "value"]
    assert set(standard["statistic"]) == set(STATISTICS)
    assert not standard.duplicated(["width", "depth", "step", "seed", "where", "statistic"]).any()
    assert np.all(np.isfinite(standard["value"])) and set(standard["seed"]) == set(range(SEEDS))
    steps = standard.groupby("statistic")["step"].max()
    assert steps[["activation", "change"]].tolist() == [STEPS, STEPS]
    assert set(steps.drop(["activation", "change"])) == {STEPS - 1}


def test_standard_rates_drift_in_width_and_mup_does_not(standard, mup):
    """Adam's step moves an output by the width under one rate, and by no power of it under muP."""
    wrong, right = exponents(standard, "width"), exponents(mup, "width")
    assert scheme_verdict(wrong) == "drifts"
    moved = wrong[(wrong["statistic"] == "change") & (wrong["line"] != "first place")]
    assert set(moved["verdict"]) == {"grows"} and len(moved) == 3
    assert not set(right.loc[right["judged"], "verdict"]) & {"grows", "shrinks", "diverged"}
    kept = right[right["statistic"] == "change"]
    assert np.all(np.abs(kept["slope"]) < 0.2) and kept["slope"].max() < moved["low"].min()
    rates = right[right["statistic"] == "effective_rate"].set_index("line")["slope"]
    np.testing.assert_allclose(rates["attention.query"], -0.5, atol=0.1)
    np.testing.assert_allclose(rates["embedding"], 0, atol=0.1)


def test_coupled_decay_fades_with_the_width_and_independent_does_not(mup, mup_coupled):
    """Of muP's matrices it takes weight_decay x rate x base / fan_in a step, against weight_decay."""
    for table, hidden, verdict in ((mup, 0.0, "constant"), (mup_coupled, -1.0, "shrinks")):
        found = exponents(table, "width")
        decay = found[found["statistic"] == "decay"].set_index("line")
        np.testing.assert_allclose(
            decay.loc[["attention.query", "feed_forward.down", "head"], "slope"], hidden, atol=1e-3
        )
        np.testing.assert_allclose(decay.loc["embedding", "slope"], 0, atol=1e-3)
        assert decay.loc["attention.query", "verdict"] == verdict
    assert scheme_verdict(exponents(mup_coupled, "width")) == "drifts"
    np.testing.assert_allclose(value(mup_coupled, "decay", "feed_forward.down", 2), 0.1 * 3e-3 * 16 / 64, rtol=1e-3)
    np.testing.assert_allclose(value(mup, "decay", "feed_forward.down", 2), 1e-3, rtol=1e-3)


@pytest.mark.parametrize(("slope", "status", "said"), [(0.0, 0, "width: stable"), (0.5, 1, "width: DRIFTS")])
def test_the_command_answers_with_its_status(slope, status, said, tmp_path, monkeypatch, capsys):
    table = planted("width", (16, 32, 64), LEVEL | {("change", "head"): slope}, noise=0.01)
    monkeypatch.setattr(
        coordinates, "measure_coordinates", lambda run, seeds, done: table[table["width"] == run.arch.d_model]
    )
    arguments = ["coordinates", "--corpus", "zipf", "--arch.d-model", "16", "--widths", "16", "32", "64", "--depths"]
    assert main([*arguments, "--out", str(tmp_path)]) == status
    assert said in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"coordinates.csv", "exponents.csv", "width.png", "width.pdf"}
    kept = exponents(pd.read_csv(tmp_path / "coordinates.csv"), "width")
    np.testing.assert_allclose(kept["slope"], pd.read_csv(tmp_path / "exponents.csv")["slope"])


def test_the_command_takes_a_presets_model_small(tmp_path, monkeypatch):
    table, seen = planted("width", (64, 128), LEVEL), []

    def measure(run, seeds, done):
        seen.append(run)
        return table[table["width"] == run.arch.d_model]

    monkeypatch.setattr(coordinates, "measure_coordinates", measure)
    arguments = ["coordinates", "--preset", "llama-7b", "--widths", "64", "128", "--depths", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert [(run.arch.d_model, run.arch.num_heads, run.arch.d_ff) for run in seen] == [(64, 2, 172), (128, 4, 344)]
    assert {(run.arch.activation, run.arch.num_layers) for run in seen} == {("swiglu", 4)}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--widths", "64"], "error: widths: must be none, or at least 2 different sizes of at least 1, got (64,)"),
        (["--widths", "--depths"], "error: widths: must not be none where depths are none"),
        (["--widths", "64", "100"], "error: widths: must be multiples of"),
        (["--seeds", "1"], "error: seeds: must be at least 2, as intervals are over seeds, got 1"),
        (["--tolerance", "0"], "error: tolerance: must be a positive number, got 0.0"),
        (["--steps", "0"], "error: steps: must be a whole number of at least 1, got 0"),
        (["--corpus", "books"], "error: corpus: unknown value 'books'"),
    ],
)
def test_wrong_input(arguments, line, tmp_path, capsys):
    assert main(["coordinates", *arguments, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(line) and printed.count("\n") == 1
    assert not (tmp_path / "out").exists()
