"""At which scale claims are judged: how large, how long, how many seeds."""

from dataclasses import dataclass

PAPER_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
"""of "Small-scale proxies", arXiv 2309.14322"""


@dataclass(frozen=True)
class Scale:
    """tiny: whether everything runs, no science. small: 2 cores. gpu: one accelerator.

    sizes: (num_layers, d_model) in growing order; seq_len, batch_size, steps: of every run that a claim does not set
    otherwise; seeds: of the grids; spike_seeds: where spikes of two schemes are compared at one rate. window: steps
    that spike metrics look back.
    """

    name: str
    sizes: tuple[tuple[int, int], ...]
    seq_len: int
    batch_size: int
    steps: int
    seeds: int
    spike_seeds: int
    rates: tuple[float, ...]
    window: int

    @property
    def middle(self) -> tuple[int, int]:
        """The size at which interventions are compared."""
        return self.sizes[len(self.sizes) // 2]


SCALES = {
    scale.name: scale
    for scale in (
        Scale("tiny", ((1, 16), (2, 16)), 8, 4, 40, 2, 2, (1e-3, 1e-1), 10),
        Scale("small", ((2, 32), (4, 64), (6, 96)), 64, 8, 500, 3, 20, PAPER_RATES, 100),
        Scale("gpu", ((4, 128), (8, 256), (12, 512)), 256, 32, 4000, 3, 20, PAPER_RATES, 1000),
    )
}


def scale(name: str) -> Scale:
    """The scale of that name. Raises ValueError with the choices for an unknown one."""
    if name not in SCALES:
        raise ValueError(f"scale: unknown value {name!r}; choose one of {', '.join(SCALES)}")
    return SCALES[name]
