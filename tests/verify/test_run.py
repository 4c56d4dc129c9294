"""Runs as data: their chunks cover the steps, at the sizes that the ramps say."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory import Architecture
from verify.training.run import Run

ARCH = Architecture(num_layers=2, d_model=16, num_heads=2, vocab_size=32, seq_len=8)
RUN = Run(ARCH, corpus="zipf", batch_size=4, steps=30)


@st.composite
def runs(draw):
    steps = draw(st.integers(1, 400))

    def ramp(sizes):
        at = draw(st.sets(st.integers(0, steps - 1), max_size=4))
        return tuple((step, draw(sizes)) for step in sorted(at))

    return dataclasses.replace(
        RUN, steps=steps, batch_ramp=ramp(st.integers(1, 9)), sequence_ramp=ramp(st.integers(1, 8))
    )


@given(runs())
def test_chunks_cover_the_steps_at_the_sizes_of_the_ramps(run):
    step, shapes = 0, set()
    for chunk in run.chunks():
        assert chunk.start == step < chunk.stop and chunk.stop - chunk.start <= chunk.length <= 25
        for step in range(chunk.start, chunk.stop):
            batch = [size for at, size in run.batch_ramp if at <= step]
            length = [size for at, size in run.sequence_ramp if at <= step]
            assert chunk.batch_size == (batch[-1] if batch else 4) and chunk.seq_len == (length[-1] if length else 8)
        step = chunk.stop
        shapes.add((chunk.length, chunk.batch_size, chunk.seq_len))
    assert step == run.steps
    assert len(shapes) <= 1 + len(run.batch_ramp) + len(run.sequence_ramp)


@pytest.mark.parametrize("steps", [1, 4, 25, 26, 30, 51, 200, 251, 997])
def test_chunks_are_of_one_length(steps):
    chunks = list(dataclasses.replace(RUN, steps=steps).chunks())
    assert len({chunk.length for chunk in chunks}) == 1
    assert len(chunks) * chunks[0].length - steps < len(chunks)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps: must be a whole number of at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout: must be in \[0, 1\), got 1.0"),
        ({"forced_logit": 0.0}, "forced_logit: must be a positive number, got 0.0"),
        ({"precision": "float16"}, "precision: must be float32 or bfloat16, got 'float16'"),
        ({"batch_ramp": ((10, 8), (10, 16))}, r"batch_ramp: must be pairs \(step, size\), steps rising"),
        ({"batch_ramp": ((30, 8),)}, "batch_ramp: must be pairs"),
        ({"batch_ramp": ((-1, 8),)}, "batch_ramp: must be pairs"),
        ({"sequence_ramp": ((5, 9),)}, "sequence_ramp: must be at most arch.seq_len = 8, got 9"),
        ({"accumulate": 3}, "accumulate: must divide every batch_size, got 3 for 4"),
        ({"accumulate": 2, "batch_ramp": ((5, 3),)}, "accumulate: must divide every batch_size, got 2 for 3"),
        ({"windows": 3}, "windows: must be 0 or at least batch_size, got 3 for 4"),
    ],
)  # fmt: skip
def test_bad_input(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RUN, **fields)
