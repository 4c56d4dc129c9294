"""Derive and predict gradient propagation in residual Transformers. Imports SymPy, NumPy and SciPy; never JAX."""

from theory.activation import Activation
from theory.architecture import Architecture
from theory.embedding import Embedding
from theory.initialization import Initialization

__all__ = ["Activation", "Architecture", "Embedding", "Initialization"]
