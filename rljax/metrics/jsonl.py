"""Metrics as JSON lines: `{"step": 1024, "time": 3.2, "loss/policy": 0.1}`, one line per write.

`time` is in seconds since the run's start; a resumed run counts on from the last line it keeps.
NaN and the infinities have no word in JSON and are written as null.
"""

import json
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from rljax import files
from rljax.config import UsageError


class JsonlWriter:
    """Appends to a file that never holds a step twice, nor a half line."""

    def __init__(self, path: pathlib.Path, resume_step: int = 0):
        """Opens `path`, first dropping its lines past `resume_step` and a half-written last one."""
        lines = [line for line in read(path) if line["step"] <= resume_step]
        if path.exists():
            files.write_text(path, "".join(f"{json.dumps(line)}\n" for line in lines))
        self._start = time.monotonic() - (lines[-1]["time"] if lines else 0.0)
        self._file = path.open("a", buffering=1, encoding="utf-8")  # 1: to the system at line ends

    def config(self, config: Mapping[str, Any]) -> None:
        """Does nothing: `config.json` in the workdir holds it."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one line."""
        finite = {name: x if math.isfinite(x) else None for name, x in metrics.items()}
        line = {"step": step, "time": round(time.monotonic() - self._start, 3), **finite}
        self._file.write(f"{json.dumps(line, allow_nan=False)}\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, none if there is no file; a half-written last one is left out.

    Raises:
      UsageError: if another line is not one of ours.
    """
    if not path.exists():
        return []
    *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    lines = []
    for number, text in enumerate(whole, start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            line = None
        if not (isinstance(line, dict) and {"step", "time"} <= line.keys()):
            raise UsageError(f'{path}, line {number} must be JSON with "step" and "time": {text!r}')
        lines.append(line)
    return lines
