"""A file is written under a temporary name in its folder and renamed: a kill leaves the old one, or a whole one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call write(temporary path) beside `path`, flush it to the disk and rename it; a failed one leaves nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def named(what: str) -> Iterator[None]:
    """An OSError of what is written within says what that was, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{what}: {error.strerror or error}; make room and start the same command again: it goes on"
        ) from error
