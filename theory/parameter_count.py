"""How many parameters an architecture has, as `models.init` builds it: matrices, biases, norms and learned factors.

Counted from the same shapes that are sampled; a tied head counts once.
"""

from theory.architecture import Architecture
from theory.attention_scheme import attention_scheme
from theory.block import PARTS, block
from theory.embedding import embedding


def num_parameters(arch: Architecture, embeddings: bool = True) -> int:
    """Parameters in all. embeddings: with the tables of tokens and positions and the head, and their norm."""
    total = arch.num_layers * _block(arch) + (_norm(arch, arch.d_model) if block(arch.block).final_norm else 0)
    if not embeddings:
        return total
    tables = ["embedding", *(["position"] if arch.positions == "learned" else []), *([] if arch.tied else ["head"])]
    normed = _norm(arch, arch.d_model) if embedding(arch.embedding).layer_norm else 0
    return total + sum(_size(arch, table) for table in tables) + normed


def _block(arch: Architecture) -> int:
    arrangement, scheme = block(arch.block), attention_scheme(arch.attention)
    count = sum(_size(arch, kind) + (arch.shape(kind)[1] if arch.bias else 0) for kind in arch.matrices)
    count += len(arch.matrices) if scheme.spectral else 0
    count += len(scheme.normed) * _norm(arch, arch.d_head)
    for part in PARTS:
        count += sum(arch.normed(where, part) for where in ("output", "post")) * _norm(arch, arch.d_model)
        if arch.normed("inner", part):
            count += _norm(arch, arch.d_model if part == "attention" else arch.ff_width)
    pre = [arch.normed("pre", part) for part in PARTS]
    count += (any(pre) if arrangement.parallel else sum(pre)) * _norm(arch, arch.d_model)
    learned = {None: 0, "scalar": 1, "vector": arch.d_model}[arrangement.learned]
    return count + len(PARTS) * learned


def _size(arch: Architecture, kind: str) -> int:
    fan_in, fan_out = arch.shape(kind)
    return fan_in * fan_out


def _norm(arch: Architecture, width: int) -> int:
    return width * (2 if arch.bias and arch.norm == "layer_norm" else 1)
