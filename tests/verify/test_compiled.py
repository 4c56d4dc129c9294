"""Little training is compiled quickly, and programs are dropped before they take all memory maps of a process."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from theory import Architecture
from verify.sweeps import lanes, store
from verify.training import compiled
from verify.training.loop import train, train_lanes
from verify.training.optimizer import Optimizer
from verify.training.run import Run, by_program

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


def test_runs_of_equal_shape_share_a_program():
    """Whatever their numbers; but not where other arrays are kept or another formula is followed."""
    run = Run(ARCH, forced_logit=10.0)
    numbers = Optimizer(
        learning_rate=1e-4, clip=0.0, beta1=0.5, beta2=0.999, epsilon=1e-3, weight_decay=0.0, decay_embeddings=False,
        warmup_steps=3, hold_steps=2, final_rate=1e-6, schedule_steps=9, embedding_rate=0.1, base_d_model=3,
    )  # fmt: skip
    same = [
        dataclasses.replace(run, seed=3, z_loss=1e-4, forced_logit=2.0, optimizer=numbers),
        *(
            dataclasses.replace(run, arch=dataclasses.replace(ARCH, **change))
            for change in ({"initialization": "he"}, {"embedding": "detach"}, {"embedding": 3.5}, {"logit_scale": 2.0})
        ),
    ]
    assert len(by_program([run, *same])) == 1
    assert len({(each.untrained(), each.forward()) for each in [run, *same]}) == 1
    others = [
        *(
            dataclasses.replace(run, optimizer=Optimizer(**change))
            for change in ({"clipping": "zclip"}, {"method": "sgd"}, {"schedule": "linear"}, {"decay": "independent"},
                           {"parametrization": "mup"})
        ),
        *(
            dataclasses.replace(run, arch=dataclasses.replace(ARCH, **change))
            for change in ({"embedding": "layer_norm"}, {"initialization": "olmo2"}, {"tied": True}, {"seq_len": 5})
        ),
        *(
            dataclasses.replace(run, **change)
            for change in ({"precision": "bfloat16"}, {"forced_logit": None}, {"spectral_norms": True}, {"steps": 9})
        ),
    ]  # fmt: skip
    assert len(by_program([run, *others])) == 1 + len(others)
    starts = [run, *(other for other in others if other.optimizer.kind != run.optimizer.kind or other.spectral_norms)]
    assert len({each.untrained() for each in starts}) == len(starts) == 4
    heads = [
        run,
        *(dataclasses.replace(run, **change) for change in ({"precision": "bfloat16"}, {"forced_logit": None})),
    ]
    assert len({each.forward() for each in heads}) == len(heads)


def test_lanes_of_one_program_are_each_the_run_that_it_is():
    """Beside others of other weights, factors and optimizer numbers: the same numbers as alone, each its own."""
    run = Run(ARCH, Optimizer(warmup_steps=2), corpus="zipf", batch_size=2, steps=8)
    runs = [
        run,
        dataclasses.replace(run, z_loss=0.3, optimizer=Optimizer(clip=0.0, beta2=0.999, epsilon=1e-2, warmup_steps=5)),
        dataclasses.replace(run, arch=dataclasses.replace(ARCH, initialization="he", embedding="vanilla")),
        dataclasses.replace(run, arch=dataclasses.replace(ARCH, embedding="detach", logit_scale=0.5), seed=1),
    ]
    together = train_lanes(runs)
    for one, other in zip(together, map(train, runs), strict=True):
        xr.testing.assert_allclose(one, other, rtol=1e-5)
    assert len({float(one["loss"][-1]) for one in together}) == len(runs)


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
