"""What a report is made of: the architecture, the training protocol and their sizes at each scale."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from theory import Architecture
from theory.embedding import Embedding
from verify.training.optimizer import Optimizer
from verify.training.run import Run

METHODS = ("vanilla", "detach", "layer_norm", "scaled")
TITLES = {
    "vanilla": "Vanilla", "detach": "Embed Detach", "layer_norm": "Embed LN", "scaled": "Scaled Embed"
}  # fmt: skip
STANDS_FOR = 2304  # the width of Spike No More's 1.7B model


@dataclass(frozen=True)
class ReportOptions:
    """One report. arch: analysed at initialisation. trained: trained, with a narrower and shallower default.

    rates, seeds, steps, batch_size: of the training runs, every rate with every seed. init_seeds: of the measurement
    at initialisation. Raises ValueError that names the field and the value.
    """

    arch: Architecture
    trained: Architecture
    corpus: str = "stdlib"
    out: Path = Path("report")
    rates: tuple[float, ...] = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
    seeds: int = 3
    steps: int = 200
    batch_size: int = 8
    init_seeds: int = 8
    jacobian_seeds: int = 2
    widths: tuple[int, ...] = (64, 128, 256, 512)

    def __post_init__(self) -> None:
        for name, least in (("seeds", 2), ("steps", 2), ("batch_size", 1), ("init_seeds", 2), ("jacobian_seeds", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be a whole number of at least {least}, got {getattr(self, name)}")
        if len(self.rates) < 2 or len(set(self.rates)) < len(self.rates):
            raise ValueError(f"rates: must be at least 2 different learning rates, got {self.rates}")
        for rate in self.rates:
            Optimizer(learning_rate=rate)

    @property
    def scale(self) -> str:
        """How large the trained model is, to stand beside a verdict."""
        a = self.trained
        return f"{a.num_layers} layers, d_model {a.d_model}, {self.steps} steps of {self.batch_size} x {a.seq_len}"

    @property
    def init_scale(self) -> str:
        """How large the analysed model is."""
        return f"{self.arch.num_layers} layers, d_model {self.arch.d_model}, seq_len {self.arch.seq_len}"

    def analysed(self, method: str) -> Architecture:
        """The architecture at initialisation with that embedding method."""
        return dataclasses.replace(self.arch, embedding=method)

    def stand_in(self, method: str) -> Architecture:
        """The architecture trained for that method.

        Vanilla and Embed Detach have their embedding's output multiplied by sqrt(d_model / 2304), which gives the
        narrow stack the signal propagation of a vanilla one of width 2304 and leaves Adam's relative step on the
        table as it is. The other two do not depend on the width.
        """
        if method not in ("vanilla", "detach") or self.trained.d_model >= STANDS_FOR:
            return dataclasses.replace(self.trained, embedding=method)
        multiplier = (self.trained.d_model / STANDS_FOR) ** 0.5
        share = 0.1 if method == "detach" else 1.0
        scheme = Embedding(f"{method} as wide as {STANDS_FOR}", multiplier=multiplier, gradient_share=share)
        return dataclasses.replace(self.trained, embedding=scheme)

    def training_runs(self, method: str) -> list[Run]:
        """All runs of that method: seeds in the outer order, rates in the inner one."""
        return [
            Run(
                arch=self.stand_in(method),
                optimizer=Optimizer(
                    learning_rate=rate, warmup_steps=min(20, self.steps // 4), beta2=0.99, clip=0.0, final_share=0.1
                ),
                corpus=self.corpus,
                batch_size=self.batch_size,
                steps=self.steps,
                seed=seed,
            )
            for seed in range(self.seeds)
            for rate in self.rates
        ]
