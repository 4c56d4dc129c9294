"""A run between two steps."""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int

from models.parameters import Transformer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """One run, or several as lanes. stopped: something was not finite, and the weights stay put.

    singular: of every weight matrix by kind, a guess at its first right singular vector; None: not followed.
    """

    params: Transformer
    optimizer: Any
    step: Int[Array, "*lanes"]
    stopped: Bool[Array, "*lanes"]
    singular: dict[str, Float[Array, "*lanes layers fan_out"]] | None = None
