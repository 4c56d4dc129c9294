"""How long do the theory's own jobs take? `import theory`, `predict` for a 96-layer stack, and every derivation.

python benchmarks/speed.py
"""

import statistics
import subprocess
import sys

JOBS = {
    "import theory (bar: 1 s)": "start = time.perf_counter(); import theory",
    "predict, 96 layers, d_model 12,288, seq_len 64, after import (bar: 1 s)": (
        "from theory import Architecture, predict\n"
        "arch = Architecture(num_layers=96, d_model=12288, num_heads=96, vocab_size=50257, embedding='vanilla')\n"
        "start = time.perf_counter(); predict(arch)"
    ),
    "derive and check every topic (bar: 60 s)": (
        "from theory import derive; from theory.derivation import topics\n"
        "start = time.perf_counter()\n"
        "assert all(derive(name).check() for name in topics())"
    ),
}


def main() -> None:
    for name, job in JOBS.items():
        program = f"import time\n{job}\nprint(time.perf_counter() - start)"
        times = [
            float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
            for _ in range(5)
        ]
        print(f"{name}: {statistics.median(times):.2f} s (median of 5, {min(times):.2f} to {max(times):.2f})")


if __name__ == "__main__":
    main()
