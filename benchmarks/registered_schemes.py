"""What the registered initialisations are by the properties that a formula or a measurement decides.

A table for docs/properties.md, in the paper's arrangement with Scaled Embed: a number beyond its default limit is bold.
Blocks of width 256 for the two requirements (no gate, as in the paper); eight gated blocks of width 128 with RMSNorms,
8 seeds, for the amplification and for how it grows.

    python benchmarks/registered_schemes.py [--out FILE.md]
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from theory import Architecture, large_shortcut, small_sublayers
from theory.growth import growth
from theory.initialization import INITIALIZATIONS
from verify import measure
from verify.properties import PROPERTIES, Limits, as_scheme

HEADER = (
    "| initialisation | gain at every width | size of the shortcut | largest excess, 8 blocks | 24 blocks "
    "| amplification, 8 gated blocks | its growth |\n|---|---|---|---|---|---|---|"
)
PLAIN = Architecture(d_model=256, num_heads=4, activation="relu", embedding="scaled", vocab_size=512, seq_len=64)
GATED = Architecture(
    num_layers=8, d_model=128, num_heads=2, num_kv_heads=1, d_ff=320, vocab_size=50, seq_len=8, norm="rms_norm",
    activation="swiglu", positions="none", embedding="scaled",
)  # fmt: skip


def row(name: str) -> str:
    """One line of the table."""
    shallow, deep = (replace(PLAIN, initialization=name, num_layers=depth) for depth in (8, 24))
    gated = replace(GATED, initialization=name)
    grown = float(np.exp(np.log(measure(gated, batch_size=4, quick=True).amplification).mean()))
    fails = {
        name: PROPERTIES[name].search(as_scheme(gated.initialization), Limits(), activation="swiglu").violation
        for name in ("width_scaling", "growth_exponent")
    }
    required = [large_shortcut(shallow), small_sublayers(shallow), small_sublayers(deep)]
    cells = [
        ("changes" if fails["width_scaling"] else "the same", fails["width_scaling"] is None),
        *((f"{found.number:.2g}", found.holds) for found in required),
        (f"{grown:.2g}", grown <= Limits().amplification),
        (growth(gated).formula, fails["growth_exponent"] is None),
    ]
    return "| " + " | ".join([name, *(text if holds else f"**{text}**" for text, holds in cells)]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the table, in Markdown")
    options = parser.parse_args()
    lines = [HEADER]
    print(HEADER, flush=True)
    for name in INITIALIZATIONS:
        lines.append(row(name))
        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
