"""Text to train on, and batches of it as a pure function of (seed, step).

`stdlib` is the Python standard library's own sources, real text that is on every machine that runs this; `text:PATH` a
file, or every text file of a folder; both are read as bytes. `zipf` is synthetic and needs no file.
"""

import hashlib
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

BYTES = 256
HELD_OUT = 0.1
CHOICES = "stdlib, zipf, or text:PATH with the path of a file or folder"
_MOST_BYTES = 8_000_000
_ZIPF_TOKENS = 1_000_000


@dataclass(frozen=True, eq=False)
class Corpus:
    """One long sequence of tokens. The last tenth is held out: no training batch touches it.

    tokens: int[length]. digest: SHA-256 of the tokens, 16 hexadecimal digits.
    """

    name: str
    tokens: np.ndarray
    digest: str

    def batch(
        self, seq_len: int, batch_size: int, *, seed: int, step: int, split: Literal["train", "held_out"] = "train"
    ) -> np.ndarray:
        """int32[batch_size, seq_len + 1]: windows at uniform random places, the same for the same seed and step.

        Raises ValueError where the split holds no whole sequence.
        """
        border = int(len(self.tokens) * (1 - HELD_OUT))
        part = self.tokens[:border] if split == "train" else self.tokens[border:]
        if len(part) < seq_len + 1:
            raise ValueError(
                f"corpus: {self.name!r} has {len(part)} tokens in its part {split!r}, too few for one sequence of "
                f"seq_len + 1 = {seq_len + 1}; give more text or a shorter seq_len"
            )
        rng = np.random.default_rng((seed, step, split == "train"))
        starts = rng.integers(len(part) - seq_len, size=batch_size)
        return part[starts[:, None] + np.arange(seq_len + 1)].astype(np.int32)


def load_corpus(name: str, vocab_size: int) -> Corpus:
    """The corpus of that name. Raises ValueError for an unknown name, a missing file, or a vocabulary below 256."""
    if name == "zipf":
        return _zipf(vocab_size)
    path = Path(name.removeprefix("text:")).expanduser()
    if name.startswith("text:"):
        if not path.exists():
            raise ValueError(f"corpus: no file or folder {str(path)!r}; choose one of {CHOICES}")
    elif name != "stdlib":
        raise ValueError(f"corpus: unknown value {name!r}; choose one of {CHOICES}")
    if vocab_size < BYTES:
        raise ValueError(f"vocab_size: {name!r} is read as bytes and needs {BYTES} words, got {vocab_size}")
    return _stdlib() if name == "stdlib" else _text(name, path)


def _bytes(name: str, text: bytes) -> Corpus:
    return _corpus(name, np.frombuffer(text, dtype=np.uint8))


def _corpus(name: str, tokens: np.ndarray) -> Corpus:
    tokens.setflags(write=False)
    return Corpus(name, tokens, hashlib.sha256(tokens.tobytes()).hexdigest()[:16])


@lru_cache(maxsize=1)
def _stdlib() -> Corpus:
    """Modules of the standard library in order of name, without tests and installed packages, up to 8 MB."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    sources, size = [], 0
    for path in sorted(root.rglob("*.py")):
        if left_out.isdisjoint(path.relative_to(root).parts) and size < _MOST_BYTES:
            sources.append(path.read_bytes())
            size += len(sources[-1])
    return _bytes("stdlib", b"\n".join(sources)[:_MOST_BYTES])


@lru_cache(maxsize=4)
def _text(name: str, path: Path) -> Corpus:
    """Read once: a sweep asks for its digest run by run."""
    return _bytes(name, _read(path))


def _read(path: Path) -> bytes:
    """Of a folder: its files in order of path, but for hidden ones and those with a zero byte near their start."""
    try:
        if path.is_file():
            return path.read_bytes()
        visible = (p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts))
        return b"\n".join(file.read_bytes() for file in sorted(visible) if file.is_file() and _is_text(file))
    except OSError as error:
        raise ValueError(f"corpus: cannot read {error.filename!r}: {error.strerror}") from error


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" not in file.read(8192)


@lru_cache(maxsize=4)
def _zipf(vocab_size: int) -> Corpus:
    """Independent tokens, the n-th most frequent with a probability in proportion to 1 / n."""
    weights = 1 / np.arange(1, vocab_size + 1)
    tokens = np.random.default_rng(0).choice(vocab_size, size=_ZIPF_TOKENS, p=weights / weights.sum())
    return _corpus("zipf", tokens.astype(np.int32))
