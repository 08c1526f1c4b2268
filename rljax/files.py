"""Files and folders that are written whole or not at all."""

import contextlib
import fcntl
import os
import pathlib
import shutil
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


@contextlib.contextmanager
def new_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to fill, which becomes `folder` when the block ends well; otherwise nothing stays.

    What a killed process left of it is cleared away by the next one.

    Raises:
        ValueError: the folder exists, or another process is filling it.
    """
    taken = ValueError(f"{folder} exists already: choose a new folder.")
    if folder.exists():
        raise taken
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    handle = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is writing {folder}: choose a new folder.") from None
        except OSError:  # a file system that knows no locks
            pass
        if not partial.exists() or not os.path.samestat(os.fstat(handle), partial.stat()):
            raise taken  # the other process has just ended
        for left in partial.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield partial
            if folder.exists():
                raise taken
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(handle)
