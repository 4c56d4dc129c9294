"""How often does a right scheme fail a statistical property? A table for docs/properties.md.

At the default limits an alarm is so rare that it cannot be counted. So each property is asked at a level of 0.1, over
many draws of right schemes (Gaussian, cut off, uniform), and may fail in a tenth of them at most; and as often at the
default level, where it should never. The properties of the stream have budgets instead: they are asked at the default
limits, of ten times as many draws of Megatron's initialisation.

    python benchmarks/false_alarms.py [--draws 100] [--out FILE.md]
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from theory import Architecture, Initialization
from theory.notation import d
from verify.properties import PROPERTIES, Limits, as_scheme
from verify.properties.check import share_of
from verify.properties.signals import SEEDS
from verify.statistics.intervals import proportion_interval

LEVEL = 0.1
ARCH = Architecture(
    num_layers=1, d_model=8, num_heads=2, num_kv_heads=1, vocab_size=11, seq_len=8, norm="rms_norm",
    activation="swiglu", positions="learned", initialization="small", embedding="vanilla",
)  # fmt: skip
STATISTICAL = ("declared_std", "zero_mean", "distribution", "determined_by_key", "independent_matrices",
               "independent_entries", "exchangeable", "spectral_norm")  # fmt: skip

STREAM = Architecture(
    num_layers=4, d_model=128, num_heads=4, vocab_size=64, seq_len=16, initialization="megatron", embedding="scaled"
)


def _uniform(arch: Architecture) -> dict[str, object]:
    reach = (3 / arch.d_model) ** 0.5
    return {"default": lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -reach, reach)}


SCHEMES = {
    "Gaussian (small)": as_scheme("small"),
    "cut off at 2 (ssp)": as_scheme("ssp"),
    "uniform": as_scheme(_uniform, Initialization("uniform", 1 / d**0.5, {}, "benchmark"), "uniform"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100, help="independent draws of every scheme")
    parser.add_argument("--out", type=Path, help="file for the table, in Markdown")
    options = parser.parse_args()
    limits = Limits()
    default = limits.false_alarms / len(PROPERTIES) / limits.examples
    lines = [
        f"| property | scheme | alarms at level {LEVEL:g} (95 % interval of the share) | alarms at {default:.1g} |"
    ]
    lines.append("|---|---|---|---|")
    print("\n".join(lines), flush=True)
    for shown, scheme in SCHEMES.items():
        arch = scheme.arch(ARCH)
        alarms = {name: np.zeros(2, int) for name in STATISTICAL}
        for seed in range(options.draws):
            for name, found in alarms.items():
                test = PROPERTIES[name].test
                if test(scheme, arch, seed, LEVEL, limits) is not None:
                    found += 1, test(scheme, arch, seed, default, limits) is not None
        for name, (often, never) in alarms.items():
            low, high = proportion_interval(int(often), options.draws)
            lines.append(f"| {name} | {shown} | {often} of {options.draws} ({low:.3f} to {high:.3f}) | {never} |")
            print(lines[-1], flush=True)
    scheme, counts = as_scheme("megatron"), dict.fromkeys(("stream_band", "amplification", "predicted"), 0)
    for seed in range(10 * options.draws):
        for name in counts:
            each = PROPERTIES[name]
            alpha = each.alpha(share_of(limits))
            counts[name] += each.test(scheme, STREAM, SEEDS * seed, alpha, limits) is not None
    for name, count in counts.items():
        low, high = proportion_interval(count, 10 * options.draws)
        lines.append(f"| {name} | megatron | | {count} of {10 * options.draws} ({low:.4f} to {high:.4f}) |")
        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
