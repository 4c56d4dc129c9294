"""A run between two steps."""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Bool, Int

from models.parameters import Transformer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """One run, or several as lanes. stopped: something was not finite, and the weights stay put."""

    params: Transformer
    optimizer: Any
    step: Int[Array, "*lanes"]
    stopped: Bool[Array, "*lanes"]
