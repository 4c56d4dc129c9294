"""Small, true Transformers in JAX, built and sampled from `theory.Architecture`."""

from models.initialization import init
from models.transformer import Observations, Switches, Transformer, apply, loss

__all__ = ["Observations", "Switches", "Transformer", "apply", "init", "loss"]
