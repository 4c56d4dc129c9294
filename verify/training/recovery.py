"""PaLM's way with a loss spike, done by itself: back to a state before it, on without the batches around it.

Chowdhery et al., arXiv 2204.02311, section 5.1: about 20 spikes; each time training went on from a checkpoint about 100
steps before the spike, and 200 to 500 batches, those seen before and during it, were left out. And their control: the
same batches made no spike when they were trained on from a different, earlier checkpoint.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from verify.training.corpus import load_corpus
from verify.training.detection import Recovery, Spike, first_spike
from verify.training.loop import batch, begin, dataset_of, outcome_of, take
from verify.training.ring import Ring, Rows, joined, set_aside
from verify.training.run import Chunk, Run
from verify.training.state import State

Batches = Callable[[int], np.ndarray]
"""int[batch_size, seq_len + 1] of that number"""


def train_recovering(
    run: Run,
    recovery: Recovery,
    folder: Path,
    batches: Batches | None = None,
    told: Callable[[str], object] = lambda line: None,
) -> xr.Dataset:
    """Train one run on one device; at a spike, back to a kept state and on without the batches around it.

    Each row is a step that was taken, in order, those that were thrown away included: the variables of `train`, and by
    step `kept`: whether it is of the path that lasted. Coordinates: step, of the optimizer; batch, the number of the
    one it saw; attempt, how many recoveries came before. Attributes: outcome, outcome_step and held_out_loss of the
    path that lasted; recoveries and ignored, JSON lists of `Spike`. `surviving` gives the path alone. Without a spike
    that is `train`'s dataset, bit for bit.

    Step s sees batch s until a recovery, after n of them batch s + n skip. Dropout goes with the step. A spike is
    ignored when `most` recoveries are used up, and when its first step is not beyond the one at which the spike before
    was detected: going back did not help, and would not end. Spikes count again that begin later than that step, or
    none, where something was not finite.

    folder: for the states. Killed, the same call goes on from the newest; where all is done, only the last steps are
    taken again. batches: where they come from, instead of from the corpus in the run's order; it must give the same for
    the same number. told: called with one line at each spike.

    Raises ValueError for a folder that is damaged or another run's, for batches of a wrong shape and for a run with
    certificates; OSError where the folder cannot be written.
    """
    if run.certify_every:
        raise ValueError(f"certify_every: must be 0 in a run that may go back, got {run.certify_every}")
    chunks, state, rows = tuple(run.chunks()), begin(run), list[Rows]()
    spikes, unwatched = list[Spike](), 0
    with Ring(folder, recovery.ring, digest(run, recovery), state) as ring:
        if (found := ring.read()) is not None:
            state, notes, rows = found
            spikes, unwatched = [_spike(entry) for entry in notes["spikes"]], notes["unwatched"]
            told(f"step {int(state.step[0])}: goes on from there, as {folder} has it")
        history = _history(rows, int(state.step[0]))
        while (step := len(history)) < run.steps:
            if step % recovery.every == 0:
                entries = [dataclasses.asdict(spike) for spike in spikes]
                ring.keep(state, {"spikes": entries, "unwatched": unwatched}, rows)
            attempt = len(_made(spikes))
            piece = _piece(chunks, recovery.every, step, run.steps)
            state, taken = _take(run, piece, state, recovery.skip * attempt, batches)
            rows.append(taken | {"attempt": np.full(len(taken["step"]), attempt)})
            history = np.r_[history, _judged(taken)]
            since = max(step - recovery.patience + 1, unwatched)
            while (place := first_spike(history[:, 0], history[:, 1], recovery, since)) is not None:
                spike = _decided(*place, history, spikes, ring.steps(), recovery)
                spikes.append(spike)
                told(_line(spike, attempt + 1, recovery.most))
                if spike.restored is not None:
                    state, history, unwatched = ring.go_back(spike.restored, attempt), history[: spike.restored], 0
                    break
                unwatched = since = _watched_again(spike, spikes, history, recovery, run.steps)
    return _dataset(run, state, joined(rows), spikes)


def surviving(dataset: xr.Dataset) -> xr.Dataset:
    """Of `train_recovering`'s dataset the path that lasted, one row an optimizer step, as `train` gives it."""
    return dataset.isel(step=np.flatnonzero(dataset["kept"])).drop_vars(["kept", "batch", "attempt"])


def control(
    run: Run,
    recovery: Recovery,
    folder: Path,
    dataset: xr.Dataset,
    number: int = 0,
    preceding: int = 20,
    batches: Batches | None = None,
) -> xr.Dataset:
    """PaLM's control: the batches of a spike once more, from the earlier state that the run went back to.

    number: of the recovery, from 0, in dataset, which is `train_recovering`'s of the same arguments. The state sees at
    once the `preceding` batches before the spike's first step and all that followed until the run went back, though the
    run was at another state when it saw them. By batch: loss, gradient_norm (nats per token) and step as they were, and
    control_loss, control_gradient_norm and control_step. Attributes: restored, and spiked, 0 or 1: whether the rule
    finds a spike there too, on the loss of the path up to that state and the control's after it.

    Raises ValueError for a number that is not there, a folder without that state, and where `preceding` reaches back to
    the state itself: it would take the same steps again.
    """
    log = [_spike(entry) for entry in json.loads(dataset.attrs["recoveries"])]
    if not 0 <= number < len(log):
        raise ValueError(f"number: must be that of one of {len(log)} recoveries, from 0, got {number}")
    restored, first = log[number].restored, log[number].first
    assert restored is not None
    if not 0 <= preceding < first - restored:
        raise ValueError(
            f"preceding: must be from 0 to {first - restored - 1}, for a spike at step {first} and a state of step "
            f"{restored}, got {preceding}"
        )
    step, attempt = dataset["step"].values, dataset["attempt"].values
    seen = dataset.isel(step=np.flatnonzero((attempt == number) & (step >= first - preceding)))
    past = dataset.isel(step=np.flatnonzero(dataset["kept"].values & (step < restored)))
    shift = int(seen["batch"][0]) - restored
    state = set_aside(folder, number, begin(run))
    chunks, rows, stop = tuple(run.chunks()), list[Rows](), restored + seen.sizes["step"]
    while (at := int(state.step[0])) < stop:
        state, taken = _take(run, _piece(chunks, recovery.every, at, stop), state, shift, batches)
        rows.append(taken)
    again = joined(rows)
    series = np.r_[np.c_[past["loss"], past["gradient_norm"]], _judged(again)]
    units = {"units": "nats per token"}
    return xr.Dataset(
        {
            "loss": ("batch", seen["loss"].values, units),
            "gradient_norm": ("batch", seen["gradient_norm"].values, units),
            "control_loss": ("batch", again["loss"], units),
            "control_gradient_norm": ("batch", again["gradient_norm"], units),
        },
        coords={
            "batch": seen["batch"].values,
            "step": ("batch", seen["step"].values),
            "control_step": ("batch", again["step"]),
        },
        attrs={
            "restored": restored,
            "spiked": int(first_spike(series[:, 0], series[:, 1], recovery, restored) is not None),
        },
    )


def digest(run: Run, recovery: Recovery) -> str:
    """12 hexadecimal digits: two runs that may not share a folder differ in them."""
    return hashlib.sha256(repr((run, recovery)).encode()).hexdigest()[:12]


def _piece(chunks: Sequence[Chunk], every: int, step: int, stop: int) -> Chunk:
    """What is taken at once from that step on: not beyond its chunk, `stop`, or the next step to keep a state at."""
    chunk = next(chunk for chunk in chunks if step < chunk.stop)
    return dataclasses.replace(chunk, start=step, stop=min(chunk.stop, (step // every + 1) * every, stop))


def _take(run: Run, piece: Chunk, state: State, shift: int, batches: Batches | None) -> tuple[State, Rows]:
    """The state after the piece and its rows; step s sees batch s + shift."""
    steps = np.arange(piece.start, piece.stop)
    tokens = [_tokens(run, piece, int(number), batches) for number in steps + shift]
    padded = np.stack(tokens + tokens[-1:] * (piece.length - len(tokens)))
    state, telemetry = take(run, state, padded, piece.stop)
    return state, telemetry | {"step": steps, "batch": steps + shift}


def _tokens(run: Run, piece: Chunk, number: int, batches: Batches | None) -> np.ndarray:
    if batches is None:
        return batch(load_corpus(run.corpus, run.arch.vocab_size), run, piece, number)
    tokens, shape = np.asarray(batches(number)), (piece.batch_size, piece.seq_len + 1)
    if tokens.shape != shape or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"batches: number {number} must be integers {shape}, got {tokens.dtype}{tokens.shape}")
    return tokens.astype(np.int32)


def _judged(rows: Rows) -> np.ndarray:
    """float[steps, 2]: loss and gradient norm."""
    return np.c_[rows["loss"], rows["gradient_norm"]]


def _path(steps: np.ndarray, count: int) -> np.ndarray:
    """int[count]: of each of the first `count` steps the last row that took it; steps: of all rows, in order."""
    rows = np.empty(count, np.intp)
    known = np.flatnonzero(steps < count)
    rows[steps[known]] = known
    return rows


def _history(rows: Sequence[Rows], count: int) -> np.ndarray:
    """float[count, 2]: what the path up to there is judged by."""
    if not rows:
        return np.empty((0, 2), np.float32)
    together = joined([{name: piece[name] for name in ("step", "loss", "gradient_norm")} for piece in rows])
    return _judged(together)[_path(together["step"], count)]


def _made(spikes: Sequence[Spike]) -> list[Spike]:
    """Those that the run went back from."""
    return [spike for spike in spikes if spike.restored is not None]


def _decided(
    first: int, detected: int, history: np.ndarray, spikes: Sequence[Spike], kept: Sequence[int], recovery: Recovery
) -> Spike:
    """What is done about a spike. history: [steps, 2] of the path. spikes: those before. kept: steps with a state."""
    reason = _reason(history[: detected + 1], recovery.window)
    made = _made(spikes)
    if len(made) == recovery.most:
        return Spike(first, detected, reason, ignored=f"all {recovery.most} recoveries are used up")
    if made and first <= made[-1].detected:
        place = f"step {made[-1].detected}, where the spike before was detected, is not passed"
        return Spike(first, detected, reason, ignored=place)
    restored = max((step for step in kept if step <= first - recovery.back), default=min(kept))
    begin = restored + recovery.skip * len(made)
    return Spike(first, detected, reason, restored, (begin, begin + recovery.skip - 1))


def _reason(history: np.ndarray, window: int) -> str:
    """Of the last step."""
    loss, gradient_norm = history[-1]
    if not np.isfinite(loss):
        return "loss is not finite"
    if not np.isfinite(gradient_norm):
        return "gradient is not finite"
    recent = history[-window:, 0]
    above = loss - np.nanmedian(recent)
    return f"loss {loss:.2f}, {above:.2g} nats above the median of {len(recent)} steps"


def _watched_again(ignored: Spike, spikes: Sequence[Spike], history: np.ndarray, recovery: Recovery, steps: int) -> int:
    """The step from which on spikes are looked for, after one that was ignored."""
    made = _made(spikes)
    if len(made) == recovery.most or not np.all(np.isfinite(history[ignored.detected])):
        return steps
    return made[-1].detected + 1


def _line(spike: Spike, number: int, most: int) -> str:
    if spike.restored is None:
        return f"step {spike.detected}: {spike.reason}; no recovery, as {spike.ignored}"
    left_out = f"batches {spike.skipped[0]} to {spike.skipped[1]} left out ({number} of {most})"
    return f"step {spike.detected}: {spike.reason}; back to step {spike.restored}, {left_out}"


def _spike(entry: dict[str, Any]) -> Spike:
    return Spike(**entry | {"skipped": tuple(entry["skipped"])})


def _dataset(run: Run, state: State, rows: Rows, spikes: Sequence[Spike]) -> xr.Dataset:
    path = _path(rows["step"], run.steps)
    outcome, step = outcome_of(rows["loss"][path], rows["gradient_norm"][path])
    kept = np.zeros(len(rows["step"]), bool)
    kept[path] = True
    whole = dataset_of(run, state, rows)
    logs = {
        "recoveries": [dataclasses.asdict(spike) for spike in _made(spikes)],
        "ignored": [dataclasses.asdict(spike) for spike in spikes if spike.restored is None],
    }
    return (
        whole.assign(kept=("step", kept, {"long_name": "whether the step is of the path that lasted"}))
        .assign_coords(
            step=("step", rows["step"], whole["step"].attrs),
            batch=("step", rows["batch"], {"long_name": "number of the batch"}),
            attempt=("step", rows["attempt"], {"long_name": "recoveries before the step"}),
        )
        .assign_attrs(outcome=outcome, outcome_step=step, **{name: json.dumps(log) for name, log in logs.items()})
    )
