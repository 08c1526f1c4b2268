"""Files that are written whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """The name of a file to write, which takes the place of `path` when the block ends well.

    Otherwise, and after a kill at any moment, `path` is what it was. The name has the number of the
    process in it: of two that write at once, the last one's file stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # else a machine that stops may keep the name and lose the rest
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes `path` whole, or leaves it as it was."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
