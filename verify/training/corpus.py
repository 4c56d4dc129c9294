"""Tokens to train on, and batches of them as a pure function of (seed, step).

`stdlib` is the Python standard library's own sources, real text that is on every machine that runs this; `text:PATH` a
file, or every text file of a folder; `hub:NAME` or `hub:NAME:COLUMN` a Hugging Face data set, or a folder in one of its
formats; all are read as bytes. `words` is stdlib in as many words as the vocabulary has room for, `letters` in as many
of its most frequent bytes. `tokens:PATH.bin` is a file of tokens as nanoGPT writes it. `zipf` is synthetic.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from verify.training import sources

HELD_OUT = 0.1
CHOICES = "stdlib, words, letters, zipf, or text:PATH, tokens:PATH.bin, hub:NAME with your path or name"


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokens to train on, and others that are held out: no training batch touches them.

    train, held_out: int[length], one sequence each. digest: SHA-256 of all tokens, 16 hexadecimal digits.
    """

    name: str
    train: np.ndarray
    held_out: np.ndarray
    digest: str

    def batch(
        self,
        seq_len: int,
        batch_size: int,
        *,
        seed: int,
        step: int,
        split: Literal["train", "held_out"] = "train",
        windows: int | None = None,
    ) -> np.ndarray:
        """int32[batch_size, seq_len + 1], the same for the same seed and step.

        Windows lie at uniform random places. windows: only that many places, evenly spaced over the training tokens,
        are ever drawn, each at most once a batch; a batch of all of them has them in order, whatever seed and step.
        The held-out split ignores it. Raises ValueError where the split holds no whole sequence, or the training
        tokens not that many without overlap, and where a batch is larger than `windows`.
        """
        part = self.train if split == "train" else self.held_out
        if len(part) < seq_len + 1:
            raise ValueError(
                f"corpus: {self.name!r} has {len(part)} tokens in its part {split!r}, too few for one sequence of "
                f"seq_len + 1 = {seq_len + 1}; give more text or a shorter seq_len"
            )
        rng = np.random.default_rng((seed, step, split == "train"))
        if windows is None or split == "held_out":
            starts = rng.integers(len(part) - seq_len, size=batch_size)
        else:
            self._require_windows(windows, seq_len, batch_size)
            drawn = np.arange(windows) if batch_size == windows else rng.choice(windows, batch_size, replace=False)
            starts = drawn * len(part) // windows
        return part[starts[:, None] + np.arange(seq_len + 1)].astype(np.int32)

    def _require_windows(self, windows: int, seq_len: int, batch_size: int) -> None:
        if windows < 1:
            raise ValueError(f"windows: must be a whole number of at least 1, got {windows!r}")
        if batch_size > windows:
            raise ValueError(f"batch_size: must be at most windows = {windows}, got {batch_size}")
        room = len(self.train) // (seq_len + 1)
        if windows > room:
            raise ValueError(
                f"windows: {self.name!r} has {len(self.train)} tokens to train on, room for {room} windows of "
                f"seq_len + 1 = {seq_len + 1} without overlap, got {windows}; ask for fewer, or give more text"
            )


def load_corpus(name: str, vocab_size: int) -> Corpus:
    """The corpus of that name.

    Raises ValueError for an unknown name, for what cannot be read, for a vocabulary below 256 where bytes are read, and
    for a file with a token that the vocabulary does not have.
    """
    kind, _, place = name.partition(":")
    if name in ("zipf", "letters"):
        return _of_any_size(name, vocab_size)
    if kind == "tokens" and place:
        return _token_files(name, Path(place).expanduser(), vocab_size)
    if name not in ("stdlib", "words") and not (kind in ("text", "hub") and place):
        raise ValueError(f"corpus: unknown value {name!r}; choose one of {CHOICES}")
    if vocab_size < sources.BYTES:
        raise ValueError(f"vocab_size: {name!r} is read as bytes and needs {sources.BYTES} words, got {vocab_size}")
    return _words(vocab_size) if name == "words" else _text(name)


@lru_cache(maxsize=4)
def _text(name: str) -> Corpus:
    """Read once: a sweep asks for its digest run by run."""
    return _divided(name, np.frombuffer(sources.text(name), dtype=np.uint8))


@lru_cache(maxsize=4)
def _words(vocab_size: int) -> Corpus:
    return _divided("words", sources.words(vocab_size))


@lru_cache(maxsize=4)
def _of_any_size(name: str, vocab_size: int) -> Corpus:
    return _divided(name, (sources.zipf if name == "zipf" else sources.letters)(vocab_size))


def _token_files(name: str, path: Path, vocab_size: int) -> Corpus:
    """Beside a `train.bin`, `val.bin` is what is held out (nanoGPT's convention)."""
    tokens, digest = sources.token_file(path, vocab_size)
    beside = path.with_name("val.bin")
    if path.name != "train.bin" or not beside.exists():
        return Corpus(name, *_split(tokens), digest[:16])
    held_out, other = sources.token_file(beside, vocab_size)
    return Corpus(name, tokens, held_out, hashlib.sha256((digest + other).encode()).hexdigest()[:16])


def _divided(name: str, tokens: np.ndarray) -> Corpus:
    tokens.setflags(write=False)
    return Corpus(name, *_split(tokens), hashlib.sha256(tokens.tobytes()).hexdigest()[:16])


def _split(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last tenth is held out."""
    border = int(len(tokens) * (1 - HELD_OUT))
    return tokens[:border], tokens[border:]
