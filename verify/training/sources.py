"""Where the tokens of a corpus come from: text that is read as bytes, files of tokens, a synthetic law.

A document is a file of the standard library or of a folder, or a row of a data set. Documents are packed into one
sequence, as PaLM does (arXiv 2204.02311, section 5), with one byte 0 between two of them and nowhere else: a document
that is empty, or that holds a byte 0 itself, is left out. A single text file is taken as it is.
"""

import hashlib
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np

BYTES = 256
SEPARATOR = b"\0"
MOST_BYTES = 8_000_000
_ZIPF_TOKENS = 1_000_000
_CHUNK = 2**20


def text(name: str) -> bytes:
    """What `stdlib`, `text:PATH`, `hub:NAME` or `hub:NAME:COLUMN` holds; of `stdlib` and a data set at most 8 MB.

    Raises ValueError for what is missing or cannot be read.
    """
    kind, _, place = name.partition(":")
    if kind == "stdlib":
        return _packed(_modules(), MOST_BYTES)
    if kind == "hub":
        return _packed(_rows(place), MOST_BYTES)
    return _file_or_folder(Path(place).expanduser())


def words(vocab_size: int) -> np.ndarray:
    """int32[length]: the text of `stdlib` in words, runs of spaces, and single signs; line ends stand alone.

    The vocab_size - 256 that take the most bytes off have a token each, from 256 on in that order; the rest is bytes.
    """
    content = text("stdlib")
    pieces = re.findall(rb"\w+|[ \t]+|[^\w \t]", content)
    counts = Counter(pieces)
    saved = sorted(counts, key=lambda piece: (counts[piece] * (1 - len(piece)), piece))
    codes = {piece: [BYTES + number] for number, piece in enumerate(saved[: vocab_size - BYTES]) if len(piece) > 1}
    return np.fromiter(chain.from_iterable(codes.get(piece, piece) for piece in pieces), np.int32)


def letters(vocab_size: int) -> np.ndarray:
    """int32[length]: the text of `stdlib` in its `vocab_size` most frequent bytes, numbered from the most frequent on.

    The others are left out, so that no token is without use while the text has as many, as most of the 256 bytes are.
    """
    content = np.frombuffer(text("stdlib"), np.uint8)
    chosen = np.argsort(-np.bincount(content, minlength=BYTES), kind="stable")[:vocab_size]
    codes = np.full(BYTES, -1, np.int32)
    codes[chosen] = np.arange(len(chosen))
    tokens = codes[content]
    return tokens[tokens >= 0]


def zipf(vocab_size: int) -> np.ndarray:
    """int32[1_000_000]: independent tokens, the n-th most frequent with a probability in proportion to 1 / n."""
    weights = 1 / np.arange(1, vocab_size + 1)
    tokens = np.random.default_rng(0).choice(vocab_size, size=_ZIPF_TOKENS, p=weights / weights.sum())
    return tokens.astype(np.int32)


def token_file(path: Path, vocab_size: int) -> tuple[np.ndarray, str]:
    """uint16[length], mapped from the file and read where it is indexed, and the SHA-256 of the file in hexadecimal.

    The file is raw little-endian uint16. Raises ValueError where it is missing, empty or of an odd number of bytes, and
    where it holds a token of `vocab_size` or more.
    """
    try:
        if not path.is_file():
            raise ValueError(f"corpus: no file {str(path)!r}; give the path of a file of uint16 tokens")
        status = path.stat()
        if status.st_size == 0 or status.st_size % 2:
            raise ValueError(
                f"corpus: {str(path)!r} has {status.st_size} bytes, expected two for each token and some token; "
                f'write it with numpy: np.asarray(tokens, dtype="<u2").tofile(path)'
            )
        digest, largest = _scanned(path.absolute(), status.st_size, status.st_mtime_ns)
        tokens = np.memmap(path, dtype="<u2", mode="r")
    except OSError as error:
        raise ValueError(f"corpus: cannot read {str(path)!r}: {error.strerror}") from error
    if largest >= vocab_size:
        raise ValueError(
            f"vocab_size: {str(path)!r} holds the token {largest} and needs {largest + 1} words, got {vocab_size}"
        )
    return tokens, digest


@cache
def _scanned(path: Path, size: int, mtime_ns: int) -> tuple[str, int]:
    """SHA-256 and the largest token of a file, in one pass that holds 1 MB of it at a time.

    size, mtime_ns: of that file, so that another content is another call.
    """
    content, largest = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            content.update(chunk)
            largest = max(largest, int(np.frombuffer(chunk, dtype="<u2").max()))
    return content.hexdigest(), largest


def _packed(documents: Iterable[bytes], limit: int = sys.maxsize) -> bytes:
    """Documents in order, cut at `limit` bytes; no more of them are asked for than that takes."""
    kept: list[bytes] = []
    size = 0
    for document in documents:
        if document and SEPARATOR not in document:
            kept.append(document)
            size += len(document) + len(SEPARATOR)
            if size >= limit:
                break
    return SEPARATOR.join(kept)[:limit]


def _modules() -> Iterator[bytes]:
    """Modules of the standard library in order of name, without tests and installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    for path in sorted(root.rglob("*.py")):
        if left_out.isdisjoint(path.relative_to(root).parts):
            yield path.read_bytes()


def _file_or_folder(path: Path) -> bytes:
    """Of a folder: its files in order of path, but for hidden ones."""
    try:
        if path.is_file():
            return path.read_bytes()
        if not path.exists():
            raise ValueError(f"corpus: no file or folder {str(path)!r}; give the path of one that is there")
        visible = (p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts))
        return _packed(_text_of(file) for file in sorted(visible) if file.is_file())
    except OSError as error:
        raise ValueError(f"corpus: cannot read {error.filename!r}: {error.strerror}") from error


def _text_of(path: Path) -> bytes:
    """The file's content, or nothing where a byte 0 near its start shows that it is no text: it may be large."""
    with path.open("rb") as file:
        start = file.read(8192)
        return b"" if SEPARATOR in start else start + file.read()


def _rows(place: str) -> Iterator[bytes]:
    """NAME or NAME:COLUMN; the texts in that column as UTF-8, in the data set's order. A row without text is empty."""
    name, _, column = place.partition(":")
    column = column or "text"
    for row in _data_set(name):
        if column not in row or not isinstance(words := row[column], str | None):
            raise ValueError(
                f"corpus: 'hub:{name}' has no text in column {column!r}; choose one of its columns {', '.join(row)} "
                f"as hub:{name}:COLUMN"
            )
        yield (words or "").encode()


def _data_set(name: str) -> Iterator[dict[str, object]]:
    """Rows of the split `train`, streamed. Raises ValueError without the package, and for every error it raises."""
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise ValueError(f"corpus: 'hub:{name}' needs the package datasets: pip install spikeless[hub]") from error
    folder = Path(name).expanduser()
    try:
        yield from load_dataset(str(folder) if folder.is_dir() else name, split="train", streaming=True)
    except Exception as error:  # the package's own errors, Arrow's and those of its HTTP client have no common class
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(f"corpus: cannot read 'hub:{name}': {reason}") from error
