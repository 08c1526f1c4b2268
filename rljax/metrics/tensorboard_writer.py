"""Metrics as TensorBoard event files, by tensorboardX: no TensorFlow needed to write them."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from rljax.config import UsageError


class TensorBoardWriter:
    """Writes scalars, and the configuration as text, to event files in a folder."""

    def __init__(self, folder: pathlib.Path, resume_step: int = 0):
        """Opens a new event file that hides what older ones in `folder` hold past `resume_step`.

        Raises:
          UsageError: if tensorboardX is not installed.
        """
        try:
            import tensorboardX
        except ModuleNotFoundError as error:
            raise UsageError(
                "Writing for TensorBoard needs tensorboardX: pip install 'rljax[tensorboard]'."
            ) from error
        self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=resume_step + 1)

    def config(self, config: Mapping[str, Any]) -> None:
        """Shows the configuration under the tab "text"."""
        indented = "".join(f"    {line}\n" for line in json.dumps(config, indent=2).splitlines())
        self._writer.add_text("config", indented)  # TensorBoard reads Markdown: four spaces, code

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one point to each named curve."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()
