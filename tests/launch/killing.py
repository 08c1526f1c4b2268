"""Runs that are killed where they can be resumed."""

import pathlib
import signal
import subprocess
import time
from collections.abc import Sequence


def kill_behind_a_checkpoint(command: Sequence[str], workdir: pathlib.Path) -> None:
    """Starts a run and kills it once it has a checkpoint that is whole, so not from step 0 on.

    One that is being written is no number alone, but 500.orbax-checkpoint-tmp, and is not read.
    """
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 200
        while not any(path.name.isdigit() for path in workdir.glob("checkpoints/*")):
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, "no checkpoint"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
