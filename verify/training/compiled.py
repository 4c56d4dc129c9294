"""Compiled programs and the room they take in a process."""

from contextlib import suppress
from pathlib import Path

import jax

_MAPS = Path("/proc/self/maps")
_MOST_MAPS = Path("/proc/sys/vm/max_map_count")


def release_when_many(share: float = 0.5) -> bool:
    """Drop every compiled program where this process has used that share of its memory maps; whether it did.

    Linux allows a process 65,530 maps unless told otherwise. XLA takes about 900 for one program that trains on a CPU,
    and past the limit LLVM kills the process. What is still needed compiles once more. Elsewhere nothing is done.
    """
    with suppress(OSError, ValueError):
        if _MAPS.read_bytes().count(b"\n") > share * int(_MOST_MAPS.read_text()):
            jax.clear_caches()
            return True
    return False
