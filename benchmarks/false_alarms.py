"""How often does a right scheme fail a property? Two tables for docs/properties.md.

Of the weights: at the default limits an alarm is so rare that it cannot be counted. So each property is asked at a
level of 0.1, over many draws of right schemes (Gaussian, cut off, uniform), and may fail in a tenth of them at most;
and as often at the default level, where it should never.

Of loss and stream: what is measured there has budgets instead, so default runs are counted, of the registered schemes
that are within all of them (what is derived knows no chance). A run asks each property at its anchor, if it has one,
and else at architectures drawn at random; these are drawn once, to be compiled once, and every run has weights and
tokens of its own.

    python benchmarks/false_alarms.py [--draws 100] [--runs 300] [--architectures 12]
"""

import argparse
from functools import lru_cache
from unittest.mock import patch

import jax
import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from theory import Architecture, Initialization
from theory.notation import d
from verify.measurement.measure import Measurement, measure
from verify.properties import PROPERTIES, Limits, as_scheme, signals
from verify.properties.check import share_of
from verify.properties.scheme import Scheme
from verify.properties.signals import BATCH, SEEDS
from verify.statistics.intervals import proportion_interval

LEVEL = 0.1
ARCH = Architecture(
    num_layers=1, d_model=8, num_heads=2, num_kv_heads=1, vocab_size=11, seq_len=8, norm="rms_norm",
    activation="swiglu", positions="learned", initialization="small", embedding="vanilla",
)  # fmt: skip
STATISTICAL = ("declared_std", "zero_mean", "distribution", "determined_by_key", "independent_matrices",
               "independent_entries", "exchangeable", "spectral_norm")  # fmt: skip


def _uniform(arch: Architecture) -> dict[str, object]:
    reach = (3 / arch.d_model) ** 0.5
    return {"default": lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -reach, reach)}


SCHEMES = {
    "Gaussian (small)": as_scheme("small"),
    "cut off at 2 (ssp)": as_scheme("ssp"),
    "uniform": as_scheme(_uniform, Initialization("uniform", 1 / d**0.5, {}, "benchmark"), "uniform"),
}


MEASURED = ("finite", "stream_band", "amplification", "predicted")
RIGHT = ("megatron", "bloom", "deepnorm", "glm", "zero_output")
"""registered initialisations within all budgets, in the paper's arrangement with Scaled Embed"""


def of_weights(draws: int) -> None:
    """Alarms of every statistical property at both levels."""
    limits = Limits()
    default = limits.false_alarms / len(PROPERTIES) / limits.examples
    print(f"| property | scheme | alarms at level {LEVEL:g} (95 % interval of the share) | alarms at {default:.1g} |")
    print("|---|---|---|---|", flush=True)
    for shown, scheme in SCHEMES.items():
        arch = scheme.arch(ARCH)
        for name in STATISTICAL:
            test, often, never = PROPERTIES[name].test, 0, 0
            for seed in range(draws):
                if test(scheme, arch, seed, LEVEL, limits) is not None:
                    often, never = often + 1, never + (test(scheme, arch, seed, default, limits) is not None)
            print(f"| {name} | {shown} | {_share(often, draws)} | {never} |", flush=True)


def of_runs(runs: int, architectures: int) -> None:
    """Default runs in which a property with a budget fails, or any of them."""
    share, counted = share_of(Limits()), [PROPERTIES[name] for name in MEASURED]
    print("| scheme | " + " | ".join(each.name for each in counted) + " | any |")
    print("|---" * (len(counted) + 2) + "|", flush=True)
    totals = np.zeros(len(counted) + 1, int)
    for name in RIGHT:
        scheme = as_scheme(name)
        drawn = [_drawn(each.architectures(scheme, {}), architectures) for each in counted]
        anchors = [each.anchors(scheme, {})[-1:] for each in counted]
        failed = np.zeros((len(counted), runs), bool)
        for run in sorted(range(runs), key=lambda run: run % architectures):  # of one architecture after another
            for number, each in enumerate(counted):
                random = each.examples(share) - len(anchors[number])
                at = [*anchors[number], *(drawn[number][(run + step) % architectures] for step in range(random))]
                failed[number, run] = any(
                    each.at(scheme, arch, SEEDS * run, share).violation is not None for arch in at
                )
        alarms = np.array([*failed.sum(axis=1), failed.any(axis=0).sum()])
        totals += alarms
        print(f"| {name} | " + " | ".join(f"{count} of {runs}" for count in alarms) + " |", flush=True)
    print("| all | " + " | ".join(_share(count, runs * len(RIGHT)) for count in totals) + " |", flush=True)


@lru_cache(maxsize=32)
def _measured(scheme: Scheme, arch: Architecture, seed: int) -> Measurement:
    """As the properties measure, but compiled to run often."""
    return measure(arch, BATCH, SEEDS, first_seed=seed, init=scheme.init)


def _drawn(strategy: st.SearchStrategy[Architecture], count: int) -> list[Architecture]:
    """Some architectures, in an order of chance."""
    found = list[Architecture]()

    @settings(max_examples=3 * count, database=None, deadline=None, phases=(Phase.generate,), derandomize=True)
    @given(strategy)
    def collect(arch: Architecture) -> None:
        found.append(arch)

    collect()
    return [*dict.fromkeys(found)][-count:]


def _share(count: int, of: int) -> str:
    low, high = proportion_interval(int(count), of)
    return f"{count} of {of} ({low:.2g} to {high:.2g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100, help="independent draws of every scheme; 0: no first table")
    parser.add_argument("--runs", type=int, default=300, help="default runs of every scheme; 0: no second table")
    parser.add_argument("--architectures", type=int, default=12, help="that these runs draw from")
    options = parser.parse_args()
    if options.draws:
        of_weights(options.draws)
    if options.runs:
        with patch.object(signals, "_measured", _measured):
            of_runs(options.runs, options.architectures)


if __name__ == "__main__":
    main()
