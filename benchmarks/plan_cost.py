"""What would a reproduction of Spike No More cost? The table of docs/clusters.md, from what `sweep plan` counts.

One run each of the 350M and the 1.7B model: 50,000 steps of 256 sequences of 2,048 tokens, float32, activations
computed again, on a mesh that is all fsdp. Nothing is run here.

    python benchmarks/plan_cost.py [--device-flops 2e14]
"""

import argparse

import pandas as pd

from theory.parameter_count import num_parameters
from theory.presets import preset
from verify.sweeps.cost import cost, mesh_bytes
from verify.training.mesh import MeshShape
from verify.training.run import Run

STEPS, BATCH = 50_000, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device-flops", type=float, default=2e14, help="that a device achieves a second")
    options = parser.parse_args()
    rows = []
    for name in ("snm-350m", "snm-1.7b"):
        run = Run(preset(name).arch, corpus="zipf", batch_size=BATCH, steps=STEPS, recompute=True)
        arch, planned = run.arch, cost(run)
        for devices in (8, 64):
            rows.append(
                {
                    "model": f"{name} (N {arch.num_layers}, d {arch.d_model})",
                    "P in blocks": f"{num_parameters(arch, embeddings=False):.4g}",
                    "d V": f"{arch.d_model * arch.vocab_size:.4g}",
                    "N d T": f"{arch.num_layers * arch.d_model * arch.seq_len:.4g}",
                    "tokens": f"{planned.tokens:.4g}",
                    "FLOP": f"{planned.flops:.3g}",
                    "devices": devices,
                    "GB a device": f"{mesh_bytes(run, MeshShape(fsdp=devices)) / 1e9:.0f}",
                    "hours": f"{planned.flops / options.device_flops / devices / 3600:.3g}",
                }
            )
    table = pd.DataFrame(rows)
    print("| " + " | ".join(table.columns) + " |\n" + "|---" * len(table.columns) + "|")
    for _, row in table.iterrows():
        print("| " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    main()
