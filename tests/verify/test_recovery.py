"""PaLM's recovery: a spike is seen in time, just its batches are left out, and without one nothing happens; killed, the
run ends as if never killed."""

import dataclasses
import json
import shutil
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
from theory import Architecture
from verify.__main__ import main
from verify.sweeps import store
from verify.training import recovery as module
from verify.training.corpus import load_corpus
from verify.training.detection import Recovery, first_spike
from verify.training.loop import begin, train
from verify.training.optimizer import Optimizer
from verify.training.recovery import control, surviving, train_recovering
from verify.training.ring import set_aside
from verify.training.run import Run

RUN = Run(
    Architecture(num_layers=2, d_model=16, num_heads=2, vocab_size=32, seq_len=8),
    Optimizer(learning_rate=3e-2, warmup_steps=5, schedule="constant"),
    corpus="zipf", batch_size=16, steps=100,
)  # fmt: skip
RECOVERY = Recovery(window=20, excess=0.6, patience=2, back=10, skip=40, every=10, ring=3, most=2)


def planted(*stretches):
    """The run's batches, but in these stretches of numbers the rarest word alone, which Zipf's law gives 1 in 130."""

    def batch(number):
        if any(begin <= number < end for begin, end in stretches):
            return np.full((16, 9), 31)
        return load_corpus("zipf", 32).batch(8, 16, seed=0, step=number)

    return batch


@pytest.fixture(scope="module")
def plain():
    return train(RUN)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(dataset, folder, lines) of a run with bad batches from 60 to 79."""
    folder, lines = tmp_path_factory.mktemp("recovery"), []
    return train_recovering(RUN, RECOVERY, folder, planted((60, 80)), lines.append), folder, lines


def test_without_a_spike_it_is_train_bit_for_bit(tmp_path, plain):
    """States are kept at other steps than the program's chunks of 25 end at."""
    lines = []
    dataset = train_recovering(RUN, RECOVERY, tmp_path, told=lines.append)
    path = surviving(dataset)
    assert path.drop_attrs().identical(plain.drop_attrs())
    assert path.attrs | plain.attrs == path.attrs
    assert lines == [] and json.loads(path.attrs["recoveries"]) == json.loads(path.attrs["ignored"]) == []
    assert np.all(dataset["kept"]) and not np.any(dataset["attempt"])
    np.testing.assert_array_equal(dataset["batch"], np.arange(100))


def test_bad_batches_are_left_out(made, plain):
    """Seen at the second bad step, 10 steps back is state 50, and batches 50 to 89 are never seen again."""
    dataset, _, lines = made
    level = np.median(plain["loss"][42:60].values)
    (spike,) = json.loads(dataset.attrs["recoveries"])
    assert (spike["first"], spike["detected"], spike["restored"], spike["skipped"]) == (60, 61, 50, [50, 89])
    loss = float(dataset["loss"][61])
    above = loss - float(np.median(dataset["loss"][42:62]))
    assert above == pytest.approx(loss - level, abs=0.1) and above > 1
    told = f"step 61: loss {loss:.2f}, {above:.2g} nats above the median of 20 steps; back to step 50, "
    assert lines == [told + "batches 50 to 89 left out (1 of 2)"]
    path = surviving(dataset)
    np.testing.assert_array_equal(path["step"], np.arange(100))
    np.testing.assert_array_equal(dataset["batch"][dataset["kept"]], np.r_[:50, 90:140])
    np.testing.assert_array_equal(dataset["step"], np.r_[:70, 50:100])
    np.testing.assert_array_equal(dataset["kept"], np.r_[np.full(50, True), np.full(20, False), np.full(50, True)])
    np.testing.assert_array_equal(dataset["attempt"], np.r_[np.zeros(70), np.ones(50)])
    np.testing.assert_array_equal(path["loss"][:50], plain["loss"][:50])
    assert path["loss"][50:].max() < level + 0.5


def test_it_ends_with_a_lower_loss_than_without(made, tmp_path):
    """Twenty batches of one word, and the model says nothing else; 20 steps after them it is not back."""
    without = train_recovering(RUN, dataclasses.replace(RECOVERY, most=0), tmp_path, planted((60, 80)))
    path = surviving(made[0])
    assert path.attrs["held_out_loss"] < without.attrs["held_out_loss"] - 0.03
    assert path["loss"].max() < 4 < 7 < without["loss"].max()
    assert np.all(without["kept"]) and not json.loads(without.attrs["recoveries"])
    (ignored,) = json.loads(without.attrs["ignored"])
    assert ignored["ignored"] == "all 0 recoveries are used up" and ignored["restored"] is None


def test_no_more_states_lie_on_the_disk_than_the_ring_holds(tmp_path):
    counts = []

    def batch(number):
        counts.append(len(list((tmp_path / "ring").glob("[0-9]*"))))
        return planted((60, 80))(number)

    train_recovering(RUN, RECOVERY, tmp_path, batch)
    assert max(counts) == 3 and counts[0] == 1 and counts[70] == 2  # 70 steps, then back: 40 and 50 are left
    assert len(list((tmp_path / "aside").glob("[0-9]*"))) == 1


def test_recoveries_are_limited_and_the_last_spike_is_passed_first(tmp_path):
    """Bad from 60 on, one recovery does not help: at its step 50 batch 90 is bad too. That is not gone back for."""
    lines = []
    dataset = train_recovering(RUN, RECOVERY, tmp_path, planted((60, 200)), lines.append)
    assert [spike["restored"] for spike in json.loads(dataset.attrs["recoveries"])] == [50]
    (ignored,) = json.loads(dataset.attrs["ignored"])
    assert ignored["first"] == 50 and "step 61, where the spike before was detected, is not passed" in lines[1]
    assert dataset.sizes["step"] == 120 and np.count_nonzero(dataset["kept"]) == 100


def test_a_second_spike_is_recovered_from_and_a_third_is_ridden_out(tmp_path):
    """Two recoveries at most; the second leaves out 40 batches after the 40 of the first."""
    lines, recovery = [], dataclasses.replace(RECOVERY, window=10)
    dataset = train_recovering(RUN, recovery, tmp_path, planted((29, 33), (85, 89), (145, 150)), lines.append)
    recoveries, ignored = (json.loads(dataset.attrs[name]) for name in ("recoveries", "ignored"))
    # 29 is the last step of its piece; batch 85 comes at step 45, batch 145 at 65
    assert [(s["first"], s["restored"], s["skipped"]) for s in recoveries] == [(29, 10, [10, 49]), (45, 30, [70, 109])]
    assert [spike["first"] for spike in ignored] == [65] and "all 2 recoveries are used up" in lines[2]
    assert "(2 of 2)" in lines[1]
    np.testing.assert_array_equal(dataset["batch"][dataset["kept"]], np.r_[:10, 50:70, 110:180])


def test_a_spike_that_comes_back_with_other_batches_is_ridden_out_to_its_end(tmp_path):
    """Bad at steps 60 to 71, and at the same steps after going back: one recovery, not three."""
    lines = []
    dataset = train_recovering(
        RUN, dataclasses.replace(RECOVERY, most=5), tmp_path, planted((60, 72), (100, 112)), lines.append
    )
    back, ridden_out = lines
    assert "back to step" in back and "is not passed" in ridden_out
    assert len(dataset["step"]) == 100 + 20


def test_what_is_watched_no_more_stays_so_after_an_interruption(tmp_path):
    """One recovery is allowed, the spike after it is ridden out, and one at step 85 is not even looked for."""
    recovery, batches = dataclasses.replace(RECOVERY, most=1), planted((60, 72), (100, 112), (125, 135))

    def killed(number):
        if number == 115:
            raise KeyboardInterrupt
        return batches(number)

    with pytest.raises(KeyboardInterrupt):
        train_recovering(RUN, recovery, tmp_path / "killed", killed)
    dataset = train_recovering(RUN, recovery, tmp_path / "killed", batches)
    assert len(json.loads(dataset.attrs["ignored"])) == 1
    assert dataset.identical(train_recovering(RUN, recovery, tmp_path / "whole", batches))


def test_what_rises_and_then_is_not_finite_is_gone_back_from_once():
    """The rise was ignored, as it came back; what it ends in belongs to it."""
    loss = np.full(40, 2.0)
    loss[20:25], loss[25:] = 5.0, np.nan
    made = module.Spike(20, 21, "", 10, (10, 49))
    first, detected = first_spike(loss, np.ones(40), RECOVERY, since=22)
    assert (first, detected) == (20, 25)
    ignored = module._decided(first, detected, np.c_[loss, np.ones(40)], [made], [10], RECOVERY)
    assert ignored.restored is None and module._watched_again(ignored, [made], np.c_[loss, loss], RECOVERY, 40) == 40


def test_what_is_not_finite_is_a_spike_at_once(tmp_path):
    """A rate that ends every run: it goes back to the start, once, and the next end is the outcome."""
    run = dataclasses.replace(RUN, optimizer=dataclasses.replace(RUN.optimizer, learning_rate=1e30))
    lines = []
    dataset = train_recovering(run, RECOVERY, tmp_path, told=lines.append)
    assert len(lines) == 2 and "not finite; back to step 0, batches 0 to 39 left out (1 of 2)" in lines[0]
    assert "not finite; no recovery" in lines[1]
    assert dataset.attrs["outcome"].startswith("non_finite") and dataset.attrs["outcome_step"] < 10
    assert np.count_nonzero(dataset["kept"]) == 100


@pytest.mark.parametrize("at", [(35,), (64, 95, 130)])
def test_interrupted_it_ends_as_if_never_interrupted(tmp_path, made, at):
    """Before the spike, in it, after it, near the end: by what was kept at the last multiple of ten steps."""
    at, lines = list(at), []

    def batch(number):
        if at and number >= at[0]:
            at.pop(0)
            raise KeyboardInterrupt
        return planted((60, 80))(number)

    for _ in range(len(at)):
        with pytest.raises(KeyboardInterrupt):
            train_recovering(RUN, RECOVERY, tmp_path, batch, lines.append)
    dataset = train_recovering(RUN, RECOVERY, tmp_path, batch, lines.append)
    assert dataset.identical(made[0])
    assert sum("goes on from there" in line for line in lines) >= 1


def test_after_the_end_the_same_call_gives_the_same(made):
    dataset, folder, _ = made
    seen = []
    batches = planted((60, 80))
    again = train_recovering(RUN, RECOVERY, folder, lambda number: [seen.append(number), batches(number)][1])
    assert again.identical(dataset) and min(seen) == 130


def test_a_folder_of_another_run_or_damaged_is_named(made, tmp_path):
    folder = shutil.copytree(made[1], tmp_path / "copy")
    other = dataclasses.replace(RUN, seed=1)
    with pytest.raises(ValueError, match=f"folder: {folder} holds the states of another run"):
        train_recovering(other, RECOVERY, folder)
    rows = sorted((folder / "rows").iterdir(), key=lambda path: int(path.stem))
    rows[1].unlink()
    with pytest.raises(ValueError, match=f"folder: {folder} is damaged .it lacks some of 110 steps.; remove it"):
        train_recovering(RUN, RECOVERY, folder)
    rows[2].write_bytes(b"")
    with pytest.raises(ValueError, match=f"folder: {folder} is damaged"):
        train_recovering(RUN, RECOVERY, folder)


def test_control_sees_the_same_batches_at_an_earlier_state(made):
    """The state is that of the run at step 50, its first loss that of these weights on batch 55; bad batches spike."""
    dataset, folder, _ = made
    again = control(RUN, RECOVERY, folder, dataset, preceding=5, batches=planted((60, 80)))
    np.testing.assert_array_equal(again["batch"], np.arange(55, 70))
    np.testing.assert_array_equal(again["control_step"], np.arange(50, 65))
    np.testing.assert_array_equal(again["loss"], dataset["loss"][55:70])
    assert again.attrs == {"restored": 50, "spiked": 1} and again["control_loss"].max() > 4
    state = set_aside(folder, 0, begin(RUN))
    assert int(state.step[0]) == 50
    first = models.loss(jax.tree.map(lambda leaf: leaf[0], state.params), jnp.asarray(planted()(55)), RUN.arch)[0]
    np.testing.assert_allclose(again["control_loss"][0], first, rtol=1e-5)


def test_control_of_harmless_batches_does_not_spike(made):
    dataset, folder, _ = made
    again = control(RUN, RECOVERY, folder, dataset, preceding=5)
    assert again.attrs["spiked"] == 0 and again["control_loss"].max() < 3.5


def test_control_says_what_it_lacks(made, tmp_path):
    dataset, folder, _ = made
    with pytest.raises(ValueError, match="number: must be that of one of 1 recoveries, from 0, got 1"):
        control(RUN, RECOVERY, folder, dataset, 1)
    with pytest.raises(ValueError, match=r"preceding: must be from 0 to 9, .* got 10"):
        control(RUN, RECOVERY, folder, dataset, preceding=10)
    with pytest.raises(ValueError, match=f"folder: {tmp_path} has no state that recovery 0 went back to"):
        control(RUN, RECOVERY, tmp_path, dataset, preceding=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"excess": 0.0}, "excess: must be a positive number of nats, got 0.0"),
        ({"excess": np.inf}, "excess: must be a positive number of nats, got inf"),
        ({"window": 1}, "window: must be a whole number of at least 2, got 1"),
        ({"patience": 0}, "patience: must be a whole number of at least 1, got 0"),
        ({"patience": 51}, "patience: must be at most half the window, 50, got 51"),
        ({"back": 0}, "back: must be a whole number of at least 1, got 0"),
        ({"skip": 126}, "skip: must be at least back .* = 127 batches, got 126"),
        ({"every": 0}, "every: must be a whole number of at least 1, got 0"),
        ({"ring": 1}, "ring: must be a whole number of at least 2, got 1"),
        ({"ring": 5}, "ring: must be at least 6, to reach back .* = 102 steps back, got 5"),
        ({"most": -1}, "most: must be a whole number of at least 0, got -1"),
    ],
)
def test_bad_settings(changes, message):
    assert Recovery(skip=127).ring == 6
    with pytest.raises(ValueError, match=message):
        Recovery(**changes)


def test_bad_batches_and_certificates_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"batches: number 0 must be integers \(16, 9\), got int64\(16, 8\)"):
        train_recovering(RUN, RECOVERY, tmp_path, lambda number: np.zeros((16, 8), int))
    with pytest.raises(ValueError, match="certify_every: must be 0 in a run that may go back, got 50"):
        train_recovering(dataclasses.replace(RUN, certify_every=50), RECOVERY, tmp_path)


# a level of 2 nats, with steps changed: expected are the first step and that of detection
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({40: 2.7, 41: 2.7}, (40, 41)),
        ({40: 2.6, 41: 2.6}, None),  # not more than 0.6 above
        ({40: 9.0, 42: 9.0, 44: 9.0}, None),  # never two in a row
        ({40: 9.0, 42: 9.0, 43: 9.0}, (42, 43)),
        ({40: 9.0, 41: np.nan}, (40, 41)),
        ({40: np.inf}, (40, 40)),
        ({3: np.nan}, (3, 3)),
        ({3: 9.0, 4: 9.0}, None),  # in the first half window
        ({9: 9.0, 10: 9.0, 11: 9.0}, (10, 11)),
        ({40: 0.1, 41: 0.1}, None),  # a dip
    ],
)
def test_spikes_in_series_made_by_hand(changes, expected):
    loss = np.full(60, 2.0)
    loss[list(changes)] = list(changes.values())
    assert first_spike(loss, np.ones(60), RECOVERY) == expected


def test_a_gradient_that_is_not_finite_is_a_spike():
    norm = np.ones(60)
    norm[7] = np.inf
    assert first_spike(np.full(60, 2.0), norm, RECOVERY) == (7, 7)
    assert first_spike(np.full(60, 2.0), norm, RECOVERY, since=8) is None


losses = st.lists(st.one_of(st.floats(0, 3), st.sampled_from([np.nan, np.inf])), max_size=60).map(np.array)


@given(losses, st.integers(2, 12), st.integers(1, 6), st.integers(0, 70), st.sets(st.integers(0, 59), max_size=3))
def test_detection_is_the_definition(loss, window, patience, since, burst):
    """Step by step, by the definition's words. burst: steps at which the gradient is not finite."""
    recovery = dataclasses.replace(RECOVERY, window=window, patience=min(patience, window // 2))
    norm = np.ones(len(loss))
    norm[[step for step in burst if step < len(loss)]] = np.inf
    first, expected = 0, None
    for step in range(len(loss)):
        known = loss[max(step - window + 1, 0) : step + 1]
        known = known[np.isfinite(known)]
        lost = not np.isfinite(loss[step] + norm[step])
        if not lost and not (step >= window // 2 and loss[step] > np.median(known) + recovery.excess):
            first = step + 1
        elif step >= since and (lost or (first >= since and step - first + 1 >= recovery.patience)):
            expected = max(first, since - window), step
            break
    assert first_spike(loss, norm, recovery, since) == expected


@given(losses, st.lists(st.integers(1, 20), min_size=1), st.integers(1, 6))
def test_looked_at_piece_by_piece_it_is_found_at_the_same_step(loss, lengths, patience):
    """Each time from patience - 1 steps before the piece on, as the run does; later steps have no say."""
    recovery, found, end = dataclasses.replace(RECOVERY, window=12, patience=patience), None, 0
    for length in [*lengths, 60]:
        begin, end = end, min(end + length, len(loss))
        found = found or first_spike(loss[:end], np.ones(end), recovery, max(begin - patience + 1, 0))
    assert found == first_spike(loss, np.ones(len(loss)), recovery)


@given(st.integers(1, 90), st.integers(1, 40), st.lists(st.integers(1, 79), unique=True, max_size=2).map(sorted))
def test_pieces_are_the_steps_in_order_and_end_where_states_are_kept(steps, every, ramp):
    run = dataclasses.replace(RUN, steps=steps, batch_ramp=tuple((step, 8) for step in ramp if step < steps))
    chunks, ends = tuple(run.chunks()), [0]
    while ends[-1] < steps:
        piece = module._piece(chunks, every, ends[-1], steps)
        assert piece.start == ends[-1] and 0 < piece.stop - piece.start <= piece.length <= 25
        assert piece.length in {chunk.length for chunk in chunks if chunk.start <= piece.start < chunk.stop}
        ends.append(piece.stop)
    assert set(range(0, steps, every)) | {chunk.stop for chunk in chunks} == set(ends)
    assert all(begin < end for begin, end in pairwise(ends))


SIZES = """
--arch.num-layers 2 --arch.d-model 16 --arch.num-heads 2 --arch.vocab-size 32 --arch.seq-len 8 --corpus zipf
--batch-size 16 --steps 100 --optimizer.learning-rate 3e-2 --optimizer.warmup-steps 5 --optimizer.schedule constant
--recovery.window 20 --recovery.patience 2 --recovery.back 10 --recovery.skip 40 --recovery.every 20 --recovery.ring 2
""".split()  # noqa: SIM905 - read as a command line


def test_the_command_keeps_one_file_and_says_what_it_did(tmp_path, capsys, plain):
    arguments = ["recover", *SIZES, "--recovery.excess", "0.6", "--out", str(tmp_path)]
    assert main(arguments) == 0
    (path,) = tmp_path.glob("*.nc")
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("100 steps, states in ") and len(said) == 2
    assert said[1].startswith("finished at step 100, 0 recoveries, held-out loss ") and said[1].endswith(str(path))
    dataset = store.load(path)
    np.testing.assert_array_equal(dataset["loss"], plain["loss"])
    assert dataset["kept"].dtype == bool and '"recovery": {"back": 10,' in dataset.attrs["configuration"]
    written = path.stat().st_mtime_ns
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == said[1:] and path.stat().st_mtime_ns == written


def test_the_command_prints_a_recovery_as_it_happens(tmp_path, capsys):
    """The noise of these batches is a spike to a rule of 0.05 nats."""
    assert main(["recover", *SIZES, "--recovery.excess", "0.05", "--seed", "1", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "nats above the median of" in lines[1] and "(1 of 5)" in lines[1]
    (path,) = tmp_path.glob("*.nc")
    recoveries = json.loads(store.load(path).attrs["recoveries"])
    assert sum("left out" in line for line in lines) == len(recoveries) >= 1
    assert f", {len(recoveries)} recoveries, " in lines[-1]


def test_the_command_names_a_bad_setting(tmp_path, capsys):
    assert main(["recover", "--corpus", "zipf", "--recovery.skip", "100", "--out", str(tmp_path / "out")]) == 2
    assert (
        capsys.readouterr().err == "error: skip: must be at least back + every + patience - 1 = 127 batches, got 100\n"
    )
    assert not (tmp_path / "out").exists()


def test_the_command_interrupted_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train_recovering", interrupt)
    assert main(["recover", "--corpus", "zipf", "--out", str(tmp_path)]) == 130
    assert "the same command goes on" in capsys.readouterr().err
