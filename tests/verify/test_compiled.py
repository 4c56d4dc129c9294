"""Compiled programs are dropped before they take all the memory maps that a process may have."""

import threading

import jax
import jax.numpy as jnp
import pytest

from theory import Architecture
from verify.sweeps import lanes, store
from verify.training import compiled
from verify.training.run import Run

ARCH = Architecture(num_layers=1, d_model=4, num_heads=1, vocab_size=8, seq_len=4)


@pytest.mark.parametrize(("most", "dropped"), [("10", True), ("100000000", False), ("no number", False), (None, False)])
def test_dropped_where_many_maps_are_used(most, dropped, tmp_path, monkeypatch):
    limit = tmp_path / "max_map_count"
    if most is not None:
        limit.write_text(most)
    monkeypatch.setattr(compiled, "_MOST_MAPS", limit)
    double = jax.jit(lambda x: 2 * x)
    double(jnp.ones(3))
    assert compiled.release_when_many() == dropped
    assert double._cache_size() == (0 if dropped else 1)


def test_threads_go_on_when_their_programs_are_dropped(tmp_path, monkeypatch):
    """Dropped at every chunk of another thread: the same bytes as without."""
    runs = [Run(ARCH, corpus="zipf", batch_size=2, steps=60), Run(ARCH, corpus="zipf", batch_size=3, steps=60)]
    monkeypatch.setattr(lanes, "threads_that_fit", lambda runs: 2)
    calm = lanes.train_missing(runs, tmp_path / "calm")
    dropped = threading.Event()

    def drop(steps):
        jax.clear_caches()
        dropped.set()

    hasty = lanes.train_missing(runs, tmp_path / "hasty", advanced=drop)
    assert dropped.is_set() and all(store.load(path).attrs["outcome"] == "finished" for path in hasty)
    assert [path.read_bytes() for path in calm] == [path.read_bytes() for path in hasty]
