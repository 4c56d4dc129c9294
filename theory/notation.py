"""Every symbol of the theory, once: its assumptions, what it means and its unit.

The names follow "Spike No More" (Takase et al., arXiv 2312.16903). Rules and derivations use these objects,
never a fresh `sympy.Symbol`, so that two expressions that look the same are the same.
"""

from dataclasses import dataclass

import sympy as sp


@dataclass(frozen=True)
class Entry:
    """One line of the notation table."""

    symbol: sp.Symbol
    meaning: str
    unit: str


TABLE: dict[str, Entry] = {}


def _symbol(name: str, meaning: str, unit: str = "1", **assumptions: bool) -> sp.Symbol:
    if name in TABLE:
        raise ValueError(f"symbol {name!r} is already defined as: {TABLE[name].meaning}")
    symbol = sp.Symbol(name, **assumptions)
    TABLE[name] = Entry(symbol, meaning, unit)
    return symbol


def _size(name: str, meaning: str, unit: str) -> sp.Symbol:
    return _symbol(name, meaning, unit, integer=True, positive=True)


d = _size("d", "width of the residual stream, d_model", "coordinates")
d_ff = _size("d_ff", "width of the feed-forward layer", "coordinates")
d_head = _size("d_head", "width of one attention head", "coordinates")
V = _size("V", "number of words in the vocabulary", "words")
T = _size("T", "sequence length", "tokens")
N = _size("N", "number of blocks (num_layers), each of two sub-layers", "blocks")
layer = _size("n", "number of a block, counted from 1 at the input", "blocks")
fan_in = _size("fan_in", "number of inputs of a weight matrix", "coordinates")
fan_out = _size("fan_out", "number of outputs of a weight matrix", "coordinates")
