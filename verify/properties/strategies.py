"""Hypothesis strategies for what this project describes: architectures, schemes, token batches, weights.

All shrink towards fewer layers, smaller widths and the plainest switch. Importing this module registers them, so that
`hypothesis.strategies.from_type(Architecture)`, and `@given(arch=...)` inferred from a type, find them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from hypothesis import reject
from hypothesis import strategies as st

import models
from models.initialization import assemble
from models.parameters import Transformer
from theory import Architecture
from theory.activation import ACTIVATIONS
from theory.architecture import FIELD_NAMES, NORMS
from theory.attention_scheme import ATTENTIONS
from theory.block import BLOCKS, Block
from theory.embedding import EMBEDDINGS, Embedding
from theory.initialization import INITIALIZATIONS, OUTPUTS, Initialization, initialization


def initializations(names: Sequence[str] = tuple(INITIALIZATIONS)) -> st.SearchStrategy[Initialization]:
    """Registered initialisations, SmallInit without a depth factor first."""
    return st.sampled_from([INITIALIZATIONS[name] for name in _plain_first(names)])


def _plain_first(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: name != "small")


MULTIPLIERS = (0.01, 100.0)


def embeddings(
    names: Sequence[str] = tuple(EMBEDDINGS), multipliers: tuple[float, float] | None = MULTIPLIERS
) -> st.SearchStrategy[Embedding]:
    """Registered embedding methods, and multipliers between two limits (None: no bare multipliers)."""
    named = st.sampled_from([EMBEDDINGS[name] for name in names])
    if multipliers is None:
        return named
    return named | st.floats(*multipliers).map(lambda factor: Embedding(f"times {factor:g}", multiplier=factor))


@dataclass(frozen=True)
class Widths:
    """What decides the shapes of the matrices, beside the number of layers."""

    d_model: int
    num_heads: int
    num_kv_heads: int
    d_ff: int
    vocab_size: int
    seq_len: int


# Each set of shapes is compiled once, so there are few; fan-in and fan-out differ wherever they can.
WIDTHS = (
    Widths(4, 1, 1, 16, 5, 3),
    Widths(8, 2, 1, 32, 11, 4),
    Widths(12, 3, 3, 20, 7, 6),
    Widths(16, 4, 2, 64, 32, 8),
    Widths(32, 4, 1, 128, 50, 8),
    Widths(64, 4, 2, 160, 64, 16),
)
DEPTHS = (1, 2, 3, 6)


@st.composite
def architectures(
    draw: st.DrawFn,
    widths: Sequence[Widths] = WIDTHS,
    depths: Sequence[int] = DEPTHS,
    **fields: Any,
) -> Architecture:
    """Possible combinations of every switch at these sizes.

    fields: of `Architecture`, held at a value, or drawn where it is a strategy or a list. What is impossible with the
    fixed fields (RoPE with an odd head, LayerNorm in a head of two, an output matrix of 0 that is divided by its norm)
    is not drawn. Raises ValueError for a name that is no field.
    """
    unknown = set(fields) - set(FIELD_NAMES)
    if unknown:
        raise ValueError(f"{min(unknown)}: no field of Architecture; choose from {', '.join(FIELD_NAMES)}")
    held = {name: draw(_strategy(value)) for name, value in fields.items()}
    chosen = vars(draw(st.sampled_from(widths))) | {"num_layers": draw(st.sampled_from(depths))} | held
    if "num_heads" in held and "num_kv_heads" not in held:
        chosen["num_kv_heads"] = None

    def choose(name: str, values: Sequence[Any]) -> None:
        if name not in held:
            chosen[name] = draw(st.sampled_from(values))

    d_model, d_head = chosen["d_model"], chosen["d_model"] // chosen["num_heads"]
    choose("norm", NORMS if d_model >= 3 else ("rms_norm",))
    choose("initialization", _plain_first(INITIALIZATIONS))
    if "embedding" not in held:
        chosen["embedding"] = draw(st.sampled_from(list(EMBEDDINGS)) | st.floats(*MULTIPLIERS))
    wide_head = chosen["norm"] == "rms_norm" or d_head >= 3
    divides = all(not initialization(chosen["initialization"]).rule(kind).is_zero for kind in OUTPUTS)
    choose("block", list(BLOCKS))
    choose(
        "attention",
        [name for name, a in ATTENTIONS.items() if (wide_head or not a.normed) and (divides or not a.spectral)],
    )
    choose("activation", list(ACTIVATIONS))
    choose(
        "positions",
        ["none", "learned", "alibi", *["sinusoidal"] * (d_model % 2 == 0), *["rope"] * (d_head % 2 == 0)],
    )
    choose("bias", (False, True))
    choose("tied", (False, True))
    try:
        return Architecture(**chosen)
    except ValueError:
        if not held:
            raise
        reject()


def _strategy(value: object) -> st.SearchStrategy[Any]:
    if isinstance(value, st.SearchStrategy):
        return value
    return st.sampled_from(value) if isinstance(value, list) else st.just(value)


def token_batches(arch: Architecture, sizes: tuple[int, int] = (1, 4)) -> st.SearchStrategy[np.ndarray]:
    """Whole numbers int32[batch, seq_len + 1] of the vocabulary, with `sizes` the least and the largest batch.

    Uniform, or one token over and over.
    """

    def made(size: int, seed: int, same: bool) -> np.ndarray:
        shape = (size, arch.seq_len + 1)
        random = np.random.default_rng(seed).integers(0, arch.vocab_size, shape, dtype=np.int32)
        return np.zeros(shape, np.int32) + random[:1, :1] if same else random

    return st.builds(made, st.integers(*sizes), st.integers(0, 2**16), st.booleans())


def weights(
    arch: Architecture, scales: tuple[float, float] = (1.0, 1.0), seeds: tuple[int, int] = (0, 2**16)
) -> st.SearchStrategy[Transformer]:
    """Parameters of `arch` by its own initialisation, every matrix times a factor between the two scales."""

    def made(seed: int, scale: float) -> Transformer:
        matrices = models.init(jax.random.key(seed), arch).matrices
        return assemble(arch, lambda kind: scale * (matrices[kind] if "." in kind else matrices[kind][0]))

    return st.builds(made, st.integers(*seeds), st.floats(*scales))


st.register_type_strategy(Architecture, architectures())
st.register_type_strategy(Initialization, initializations())
st.register_type_strategy(Embedding, embeddings())
st.register_type_strategy(Block, st.sampled_from(list(BLOCKS.values())))
st.register_type_strategy(Transformer, architectures().flatmap(weights))
