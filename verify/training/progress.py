"""Progress of long work: bars with rate and time left on a terminal, one plain line a stage elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def progress() -> Iterator[Stage]:
    """Progress bars with rate and time left on a terminal, one plain line a stage elsewhere."""
    if not sys.stdout.isatty():
        yield _plain_stage
        return
    columns = (
        TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns) as progress:

        @contextmanager
        def stage(name: str, total: int) -> Iterator[Callable[[int], None]]:
            task = progress.add_task(name, total=total, rate="")

            def advance(done: int) -> None:
                progress.advance(task, done)
                speed = progress.tasks[task].speed
                progress.update(task, rate=f"{speed:.1f}/s" if speed else "")

            yield advance

        yield stage


@contextmanager
def _plain_stage(name: str, total: int) -> Iterator[Callable[[int], None]]:
    print(f"{name} ...", flush=True)
    yield lambda done: None
