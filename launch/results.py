"""`result.json`: the numbers that a run comes to, each script adding its own."""

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from rljax import files

FILE = "result.json"


def read(workdir: pathlib.Path) -> dict[str, Any]:
    """What is known so far, nothing if nothing; a damaged file, with a warning, is nothing."""
    path = workdir / FILE
    try:
        known = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        known = None
    if isinstance(known, dict):
        return known
    logging.warning("%s is damaged: its numbers are lost; what comes now is written anew.", path)
    return {}


def update(workdir: pathlib.Path, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Merges `numbers` in, atomically; returns the whole."""
    merged = {**read(workdir), **numbers}
    files.write_text(workdir / FILE, json.dumps(merged, indent=2) + "\n")
    return merged
