"""The expanded attention bound above the exact Jacobian of a plain NumPy causal attention, whole sequence."""

import numpy as np
import pytest

from theory import Architecture, bound


def _layer_norm(x: np.ndarray) -> np.ndarray:
    y = x - x.mean(-1, keepdims=True)
    return y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)


def _attend(x: np.ndarray, w: dict[str, np.ndarray], heads: int, kv_heads: int) -> np.ndarray:
    """x [B, T, d] plus causal attention."""
    z = _layer_norm(x)
    b, t, d = x.shape
    q = (z @ w["query"]).reshape(b, t, heads, -1)
    k, v = ((z @ w[n]).reshape(b, t, kv_heads, -1).repeat(heads // kv_heads, axis=2) for n in ("key", "value"))
    logits = np.einsum("bthi,bshi->bhts", q, k) / np.sqrt(q.shape[-1])
    logits = np.where(np.tri(t, dtype=bool), logits, -np.inf)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return x + np.einsum("bhts,bshi->bthi", p, v).reshape(b, t, d) @ w["output"]


@pytest.mark.parametrize("initialization", ["megatron", "xavier", "he"])
@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("std", [0.1, 1.0])
def test_bound_holds(initialization: str, kv_heads: int, std: float) -> None:
    arch = Architecture(
        num_layers=1, d_model=32, num_heads=4, num_kv_heads=kv_heads, seq_len=12, initialization=initialization
    )
    limit = bound(arch, shortcut_std=np.full(3, std)).sublayer[0]
    for seed in range(3):
        draw = np.random.default_rng(seed)
        kinds = ("query", "key", "value", "output")
        w = {k: draw.normal(size=arch.shape(f"attention.{k}")) * arch.std(f"attention.{k}")[0] for k in kinds}
        x = std * draw.normal(size=(12, 32))
        step = 1e-5 * std
        moves = step * np.eye(x.size).reshape(-1, 12, 32)
        jacobian = (_attend(x + moves, w, 4, kv_heads) - _attend(x - moves, w, 4, kv_heads)) / (2 * step)
        measured = np.linalg.norm(jacobian.reshape(x.size, -1), 2)
        assert measured <= limit
