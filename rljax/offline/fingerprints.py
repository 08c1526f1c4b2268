"""SHA-256 of all that is learned from; of rows that stay on disk it is kept beside them.

    folder/sha256.json   {"sha256", "made_from"}: the hash, and the files as they then were

A file is as it was if its size, its times of change, of which nobody can set the one of its inode,
and the inode are. A copy, or what was touched, is read again; so is what changed a moment ago, of
which the times might not tell two changes apart.
"""

import contextlib
import hashlib
import json
import pathlib
import time
from typing import Any

import numpy as np

from rljax import files
from rljax.offline import mapped
from rljax.offline.dataset import Dataset

FILE = "sha256.json"
_SETTLED = 60.0  # seconds without a change


def of(dataset: Dataset) -> str:
    """The hash, in hexadecimal. Rows are read once, or not if what is kept is of the same files."""
    files = mapped.files(dataset)
    if not files:
        return dataset.sha256
    kept, before = files[0].with_name(FILE), _state(dataset, files)
    told = _read(kept)
    if told.get("made_from") == before and isinstance(told.get("sha256"), str):
        return told["sha256"]
    settled = time.time() - _SETTLED
    found = dataset.sha256
    newest = max(file.stat().st_ctime for file in files)
    if newest < settled and _state(dataset, files) == before:
        _write(kept, {"sha256": found, "made_from": before})
    return found


def _state(dataset: Dataset, files: list[pathlib.Path]) -> dict[str, Any]:
    """What the hash is of: where episodes start, which was read anyway, and the files of rows."""
    starts: Any = np.ascontiguousarray(dataset.starts)
    found = [(file.name, file.stat()) for file in files]
    return {
        "starts": hashlib.sha256(starts).hexdigest(),
        "files": [
            [name, now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino] for name, now in found
        ],
    }


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _write(path: pathlib.Path, told: dict[str, Any]) -> None:
    # Into a folder that is not ours to write, or on a full disk, nothing: the rows are read again.
    with contextlib.suppress(OSError):
        files.write_text(path, json.dumps(told, indent=2) + "\n")
