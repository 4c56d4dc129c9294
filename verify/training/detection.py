"""When a run goes back from a loss spike, how far, what it leaves out; and where a spike is, from the past alone."""

import math
from dataclasses import dataclass

import numpy as np

from verify.statistics.spikes import rolling_median_steps


@dataclass(frozen=True)
class Recovery:
    """When a run goes back, how far, and what it leaves out; all but `excess` in whole numbers.

    A spike is `patience` steps in a row whose loss lies more than `excess` nats above the median of the last `window`
    steps, or one step whose loss or gradient is not finite. No step before the first half window counts, unless it is
    not finite. PaLM says of no rule. These defaults are ours: half a nat is several times the noise of a batch of some
    hundred tokens, a single odd batch is over by itself, and a median of 100 steps is near to the falling loss and not
    moved by a spike's beginning; patience is at most half the window, as later the spike is the median.

    back: steps before the spike's first one, at least, that the run goes back; about 100 in PaLM. skip: batches left
    out, from the one that was next then; 200 to 500 in PaLM. They cover all up to the detection: skip must be at least
    back + every + patience - 1. every: steps from one kept state to the next. ring: how many are kept, so that one lies
    far enough back: every (ring - 1) must be at least back + patience - 1. most: recoveries of a run; spikes after them
    are ridden out.

    Raises ValueError that names the field and the value.
    """

    window: int = 100
    excess: float = 0.5
    patience: int = 3
    back: int = 100
    skip: int = 300
    every: int = 25
    ring: int = 6
    most: int = 5

    def __post_init__(self) -> None:
        _require("excess", self.excess, 0 < self.excess < math.inf, "a positive number of nats")
        for name, least in (("window", 2), ("patience", 1), ("back", 1), ("every", 1), ("ring", 2), ("most", 0)):
            _require(name, getattr(self, name), getattr(self, name) >= least, f"a whole number of at least {least}")
        half, seen, reach = self.window // 2, self.back + self.every + self.patience - 1, self.back + self.patience - 1
        _require("patience", self.patience, self.patience <= half, f"at most half the window, {half}")
        _require("skip", self.skip, self.skip >= seen, f"at least back + every + patience - 1 = {seen} batches")
        _require(
            "ring", self.ring, self.every * (self.ring - 1) >= reach,
            f"at least {math.ceil(reach / self.every) + 1}, to reach back + patience - 1 = {reach} steps back",
        )  # fmt: skip


def _require(name: str, value: float, good: bool, expected: str) -> None:
    if not good:
        raise ValueError(f"{name}: must be {expected}, got {value!r}")


@dataclass(frozen=True)
class Spike:
    """A detected spike, and what was done.

    first, detected: its first step, and the one at which it was known. restored: the step that was gone back to, the
    first to be taken once more; None where training went on. skipped: first and last number of the batches left out.
    ignored: why training went on.
    """

    first: int
    detected: int
    reason: str
    restored: int | None = None
    skipped: tuple[int, ...] = ()
    ignored: str = ""


def first_spike(
    loss: np.ndarray, gradient_norm: np.ndarray, recovery: Recovery, since: int = 0
) -> tuple[int, int] | None:
    """First step and step of detection of the first spike that begins at step `since` or later; None if there is none.

    Of one that began before, the rest is none, but a step that is not finite always is one, whose first step may then
    lie before `since`.

    loss, gradient_norm: [steps] from the run's first step on, in nats per token. No later step has a say.
    """
    if since >= len(loss):
        return None
    begun = max(since - recovery.window, 0)
    warm_up = max(recovery.window // 2 - begun, 0)
    lost = ~(np.isfinite(loss[begun:]) & np.isfinite(gradient_norm[begun:]))
    high = rolling_median_steps(loss[begun:], recovery.window, recovery.excess, warm_up=warm_up) | lost
    steps = begun + np.arange(len(high))
    first = np.maximum.accumulate(np.where(high, begun - 1, steps)) + 1
    long = (first >= since) & (steps - first + 1 >= recovery.patience)
    found = np.flatnonzero((steps >= since) & (lost | long))
    return (int(first[found[0]]), int(steps[found[0]])) if found.size else None
