"""Little training is compiled quickly, and programs are dropped before they take all memory maps of a process."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from theory import Architecture
from verify.sweeps import lanes, store
from verify.training import compiled
from verify.training.loop import train
from verify.training.optimizer import Optimizer
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


def test_what_is_compiled_quickly_is_the_same_training(monkeypatch):
    """To rounding, over the first steps; the choice is the run's own: neither its rate nor its seed decides."""
    run = Run(ARCH, corpus="zipf", batch_size=2, steps=12, spectral_norms=True)
    quickly = train(run)
    assert compiled.quick(run) and not compiled.quick(dataclasses.replace(run, steps=10**8))
    assert compiled.programs(run) is compiled.programs(run.program())
    monkeypatch.setattr(compiled, "_FEW_FLOPS", 0.0)
    assert not compiled.quick(run)
    well = train(run)
    for name in well:
        np.testing.assert_allclose(quickly[name], well[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert quickly.attrs["held_out_loss"] == pytest.approx(well.attrs["held_out_loss"], rel=1e-5)


def test_runs_that_differ_in_numbers_of_the_optimizer_start_in_one_program():
    """But not where it keeps other arrays, or the network is another."""
    run = Run(ARCH)
    same = dataclasses.replace(run, optimizer=Optimizer(clip=0.5, beta2=0.999, weight_decay=0.0), steps=7, z_loss=1e-4)
    assert same.untrained() == run.untrained()
    others = [
        dataclasses.replace(run, optimizer=Optimizer(clip=0.0)),
        dataclasses.replace(run, optimizer=Optimizer(clipping="zclip")),
        dataclasses.replace(run, optimizer=Optimizer(method="sgd")),
        dataclasses.replace(run, precision="bfloat16"),
        dataclasses.replace(run, forced_logit=10.0),
        dataclasses.replace(run, spectral_norms=True),
        dataclasses.replace(run, arch=dataclasses.replace(ARCH, initialization="he")),
    ]
    assert len({other.untrained() for other in [run, *others]}) == 1 + len(others)


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
