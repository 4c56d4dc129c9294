"""Derive and predict gradient propagation in residual Transformers. Imports SymPy, NumPy and SciPy; never JAX."""

from theory.activation import Activation
from theory.architecture import Architecture
from theory.attention_scheme import AttentionScheme
from theory.block import Block
from theory.block_requirements import Requirement, large_shortcut, small_sublayers
from theory.bounds import Bound, bound
from theory.derivation import Derivation, Step, derive
from theory.embedding import Embedding
from theory.function_of import function_of
from theory.initialization import Initialization
from theory.logit_bound import LogitBound, logit_bounds
from theory.propagation import Prediction, predict
from theory.recommendation import Recommendation, proxy, recommend

__all__ = [
    "Activation",
    "Architecture",
    "AttentionScheme",
    "Block",
    "Bound",
    "Derivation",
    "Embedding",
    "Initialization",
    "LogitBound",
    "Prediction",
    "Recommendation",
    "Requirement",
    "Step",
    "bound",
    "derive",
    "function_of",
    "large_shortcut",
    "logit_bounds",
    "predict",
    "proxy",
    "recommend",
    "small_sublayers",
]
