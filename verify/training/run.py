"""One training run as data: everything that decides its numbers."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from models import Switches
from models.factors import Factors, factors_of, structure
from models.initialization import Stds, stds_of
from theory import Architecture
from theory.parameter_count import num_parameters
from verify.training.corpus import load_corpus
from verify.training.optimizer import Numbers, Optimizer

Ramp = tuple[tuple[int, int], ...]

_CHUNK = 25


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lane:
    """What a run brings into a program that it may share with others."""

    seed: UInt32[Array, "*lanes"]
    stds: Stds
    optimizer: Numbers
    factors: Factors
    z_loss: Float[Array, "*lanes"]
    forced_logit: Float[Array, "*lanes"] | None


@dataclass(frozen=True)
class Chunk:
    """Steps that one compiled program takes in one call: `stop` - `start`, and `length` - that many more that it skips.

    batch_size, seq_len: of each of them.
    """

    start: int
    stop: int
    length: int
    batch_size: int
    seq_len: int

    @property
    def tokens(self) -> int:
        """Of the steps that it takes."""
        return (self.stop - self.start) * self.batch_size * self.seq_len


@dataclass(frozen=True)
class Run:
    """One training run, complete: what its file is named after.

    corpus: stdlib, zipf, text:PATH, tokens:PATH or hub:NAME. windows: how many sequences of it there are to train on,
    spread over the text (0: all). batch_size: sequences a step. steps: of the optimizer. seed: of weights, of the order
    of the data and of dropout.

    batch_ramp, sequence_ramp: pairs (step, size) in order of the step from which on the batch has that many sequences,
    or each sequence that many tokens; before the first pair, batch_size and arch.seq_len. accumulate: in how many equal
    parts, one after the other, the gradient of a batch is computed.

    spectral_norms: whether every matrix's largest singular value is recorded, by one power iteration a step.
    certify_every: steps between certificates (`verify.measurement.certify`) at one held-out sequence (0: none).

    recompute, dropout, z_loss, forced_logit, and precision, which is float32 or bfloat16: as `models.Switches` says,
    with weights kept and updated in float32.

    Raises ValueError that names the field and the value.
    """

    arch: Architecture
    optimizer: Optimizer = field(default_factory=Optimizer)
    corpus: str = "stdlib"
    batch_size: int = 8
    steps: int = 300
    seed: int = 0
    recompute: bool = False
    windows: int = 0
    batch_ramp: Ramp = ()
    sequence_ramp: Ramp = ()
    accumulate: int = 1
    dropout: float = 0.0
    z_loss: float = 0.0
    forced_logit: float | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    spectral_norms: bool = False
    certify_every: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("steps", 1), ("seed", 0), ("windows", 0), ("accumulate", 1),
                            ("certify_every", 0)):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be a whole number of at least {least}, got {getattr(self, name)!r}")
        for name, good, expected in (
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("z_loss", 0 <= self.z_loss < math.inf, "0 or more"),
            ("forced_logit", self.forced_logit is None or 0 < self.forced_logit < math.inf, "a positive number"),
            ("precision", self.precision in ("float32", "bfloat16"), "float32 or bfloat16"),
        ):
            if not good:
                raise ValueError(f"{name}: must be {expected}, got {getattr(self, name)!r}")
        for name in ("batch_ramp", "sequence_ramp"):
            steps = [-1, *(step for step, _ in getattr(self, name)), self.steps]
            if any(one >= other for one, other in pairwise(steps)) or any(size < 1 for _, size in getattr(self, name)):
                raise ValueError(
                    f"{name}: must be pairs (step, size), steps rising from 0 to below {self.steps} and sizes of at "
                    f"least 1, got {getattr(self, name)!r}"
                )
        longest = max((length for _, length in self.sequence_ramp), default=0)
        if longest > self.arch.seq_len:
            raise ValueError(f"sequence_ramp: must be at most arch.seq_len = {self.arch.seq_len}, got {longest}")
        for size in (self.batch_size, *(size for _, size in self.batch_ramp)):
            if size % self.accumulate:
                raise ValueError(f"accumulate: must divide every batch_size, got {self.accumulate} for {size}")
            if 0 < self.windows < size:
                raise ValueError(f"windows: must be 0 or at least batch_size, got {self.windows} for {size}")

    def program(self) -> "Run":
        """What runs must share to advance together: all but what `lane` has, which is as it is by default."""
        return dataclasses.replace(
            self, seed=0, arch=structure(self.arch), optimizer=self.optimizer.form, z_loss=0.0,
            forced_logit=None if self.forced_logit is None else 1.0,
        )  # fmt: skip

    def lane(self) -> Lane:
        """What it brings into that program."""
        numbers = self.optimizer.numbers(self.steps), self.z_loss, self.forced_logit
        optimizer, z_loss, forced_logit = jax.tree.map(jnp.float32, numbers)
        return Lane(jnp.uint32(self.seed), stds_of(self.arch), optimizer, factors_of(self.arch), z_loss, forced_logit)

    def untrained(self) -> "Run":
        """What decides its weights before the first step, but what `lane` has; all else as it is by default."""
        return Run(structure(self.arch), self.optimizer.kind, spectral_norms=self.spectral_norms)

    def forward(self) -> "Run":
        """What decides its loss at given weights, but what `lane` has; all else as it is by default."""
        program = self.program()
        return Run(program.arch, forced_logit=program.forced_logit, precision=self.precision)

    @property
    def tokens(self) -> int:
        """That it trains on, each as often as it is seen."""
        return sum(chunk.tokens for chunk in self.chunks())

    @property
    def flops(self) -> float:
        """Floating-point operations: 6 a matrix entry and token forward and backward, 12 N d T a token in attention.

        Of the blocks a third more where their activations are computed again. Source: PaLM, arXiv 2204.02311,
        appendix B; here only entries that multiply count, so no embedding but a tied head.
        """
        arch, total = self.arch, 0.0
        matrices, head = num_parameters(arch, embeddings=False), arch.d_model * arch.vocab_size
        for chunk in self.chunks():
            blocks = 6 * matrices + 12 * arch.num_layers * arch.d_model * chunk.seq_len
            total += ((4 / 3 if self.recompute else 1) * blocks + 6 * head) * chunk.tokens
        return total

    @property
    def switches(self) -> Switches:
        """How a step passes through the network."""
        return Switches(self.recompute, self.dropout, self.forced_logit, self.z_loss, self.precision)

    def chunks(self) -> Iterator[Chunk]:
        """The steps in order, at most 25 at a time; as long as the sizes stay, all chunks have one length."""
        certified = range(self.certify_every, self.steps, self.certify_every) if self.certify_every else ()
        borders = sorted({0, self.steps, *(step for step, _ in self.batch_ramp + self.sequence_ramp), *certified})
        for begin, end in pairwise(borders):
            count = math.ceil((end - begin) / _CHUNK)
            length = math.ceil((end - begin) / count)
            sizes = _at(begin, self.batch_ramp, self.batch_size), _at(begin, self.sequence_ramp, self.arch.seq_len)
            for start in range(begin, end, length):
                yield Chunk(start, min(start + length, end), length, *sizes)


def lanes_of(runs: Sequence[Run]) -> Lane:
    """Stacked, as the program of all of them takes them."""
    return jax.tree.map(lambda *numbers: jnp.asarray(np.stack(numbers)), *(run.lane() for run in runs))


def by_program(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs that may advance together, in the order in which the first of each comes."""
    same: dict[Run, list[Run]] = {}
    for run in runs:
        same.setdefault(run.program(), []).append(run)
    return list(same.values())


def changed(run: Run, fields: Mapping[str, Any]) -> Run:
    """The run with other values of these fields; those of its model and optimizer are named arch.X and optimizer.X."""
    parts: dict[str, dict[str, Any]] = {"": {}, "arch": {}, "optimizer": {}}
    for name, value in fields.items():
        part, _, field = name.rpartition(".")
        parts[part][field] = value
    whole: dict[str, Any] = {
        "arch": dataclasses.replace(run.arch, **parts["arch"]),
        "optimizer": dataclasses.replace(run.optimizer, **parts["optimizer"]),
    } | parts[""]
    return dataclasses.replace(run, **whole)


def _at(step: int, ramp: Ramp, size: int) -> int:
    """The size at that step."""
    return next((later for begin, later in reversed(ramp) if step >= begin), size)


def require_data(runs: Iterable[Run]) -> None:
    """Raise ValueError that names a corpus that is missing or too short for a sequence of one of these runs."""
    for corpus, vocab_size, seq_len, windows in {
        (run.corpus, run.arch.vocab_size, run.arch.seq_len, run.windows) for run in runs
    }:
        tokens = load_corpus(corpus, vocab_size)
        tokens.batch(seq_len, 1, seed=0, step=0, windows=windows or None)
        tokens.batch(seq_len, 1, seed=0, step=0, split="held_out")
