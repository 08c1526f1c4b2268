"""Metrics to Weights & Biases: to its server where a key is known, else into offline files.

It never asks anything and never waits long for a network: a server that cannot be reached makes the
run an offline one. Offline runs lie in `<workdir>/wandb/`, to be sent later by `wandb sync`.
"""

import logging
import netrc
import os
import pathlib
import urllib.parse
import uuid
from collections.abc import Mapping
from typing import Any

from rljax.config import UsageError

_INIT_SECONDS = 20  # to reach the server, before the run becomes an offline one
_FINISH_SECONDS = 60  # to upload what is left; the files stay for `wandb sync`


class WandbWriter:
    """Logs to one W&B run, the same one again when a workdir's run is resumed."""

    def __init__(self, workdir: pathlib.Path, project: str):
        """Starts, or goes on with, the W&B run of `workdir`.

        WANDB_MODE in the environment may ask for "offline" or "disabled".

        Raises:
          UsageError: if wandb is not installed.
        """
        try:
            import wandb
            from wandb.errors import CommError
        except ModuleNotFoundError as error:
            raise UsageError(
                "Logging to Weights & Biases needs wandb: pip install 'rljax[wandb]'."
            ) from error
        folder = workdir.resolve() / "wandb"  # wandb makes this name in the `dir` it is given
        folder.mkdir(parents=True, exist_ok=True)
        for variable, name in (("WANDB_CACHE_DIR", "cache"), ("WANDB_DATA_DIR", "staging")):
            os.environ.setdefault(variable, str(folder / name))  # both lie in HOME otherwise

        def start(mode: str):
            return wandb.init(
                project=project,
                dir=folder.parent,
                id=_run_id(folder / "run_id.txt"),
                resume="allow",
                settings={
                    "mode": mode,
                    "console": "off",  # capturing the output breaks the live progress bar
                    "quiet": True,
                    "init_timeout": _INIT_SECONDS,
                    "finish_timeout": _FINISH_SECONDS,
                },
            )

        mode = os.environ.get("WANDB_MODE", "online")
        if mode == "online" and not _has_key():
            mode = "offline"  # wandb would ask for a key
        try:
            self._run = start(mode)
        except CommError as error:
            logging.warning("W&B cannot be reached; the run is kept in %s: %s", folder, error)
            wandb.teardown()  # else the run that failed to start keeps the id
            self._run = start("offline")

    def config(self, config: Mapping[str, Any]) -> None:
        """Stores the configuration with the run."""
        self._run.config.update(dict(config), allow_val_change=True)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics at `step`; W&B leaves out steps that the run already has."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Ends the run, uploading for at most a minute."""
        self._run.finish()


def _run_id(path: pathlib.Path) -> str:
    """The id of the workdir's run, made up the first time."""
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:8])
    return path.read_text().strip()


def _has_key() -> bool:
    """Whether wandb will find a key without asking for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    path = pathlib.Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
