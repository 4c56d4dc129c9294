"""What a network multiplies by that is no weight: numbers, so that networks that differ in them share programs."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import sympy as sp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from theory import Architecture
from theory.embedding import Embedding, embedding
from theory.initialization import MATRIX_KINDS, Initialization


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockFactors:
    """A block's: on the shortcut, on the branches where none is learned, on the pre-norm's output."""

    shortcut: Float[Array, "*layers"]
    branch: Float[Array, "*layers"]
    input: Float[Array, "*layers"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factors:
    """blocks: every layer's, stacked. embedding: on a token's row of the table. gradient_share: of the gradient that
    reaches the table. logits: on the output logits.
    """

    blocks: BlockFactors
    embedding: Float[Array, ""]
    gradient_share: Float[Array, ""]
    logits: Float[Array, ""]


def factors_of(arch: Architecture, dtype: DTypeLike = jnp.float32) -> Factors:
    """Those of an architecture."""
    method = embedding(arch.embedding)
    blocks = BlockFactors(*(jnp.asarray(arch.factor(name), dtype) for name in ("shortcut", "branch", "input")))
    scalars = arch.evaluate(method.multiplier), arch.evaluate(method.gradient_share), arch.logit_scale
    return Factors(blocks, *(jnp.asarray(scalar, dtype) for scalar in scalars))


def structure(arch: Architecture) -> Architecture:
    """An architecture of the same programs, whatever its factors and the standard deviations of its weights."""
    method = Embedding("plain", layer_norm=embedding(arch.embedding).layer_norm)
    cutoffs = {kind: cutoff for kind in MATRIX_KINDS if (cutoff := arch.truncation(kind)) is not None}
    weights = Initialization("plain", sp.S.One, {}, "any", cutoffs)
    return dataclasses.replace(arch, embedding=method, initialization=weights, logit_scale=1.0)
