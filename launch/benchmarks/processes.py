"""Other processes as a benchmark sees them: what they print, how long they take, what they hold."""

import contextlib
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, NamedTuple

from rljax.config import UsageError

_POLL_SECONDS = 0.01


class Training(NamedTuple):
    """One run of `launch.train`, seen from outside."""

    first_update_seconds: float  # from the command to its first line of metrics
    peak_memory_gb: float  # the largest resident set, in 10⁹ bytes


def output_of(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """What a command prints; raises UsageError with its last words where it fails."""
    done = subprocess.run(
        command, env=dict(environment), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UsageError(f"{command[0]} failed: {_last_line(done.stderr)}")
    return done.stdout


def help_seconds() -> float:
    """From the command `python -m launch.train --help` to its end."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "launch.train", "--help"], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def train(flags: Sequence[str]) -> Training:
    """Runs `python -m launch.train` in a workdir of its own, which is deleted behind it.

    Raises UsageError where it fails, or ends without a line of metrics.
    """
    with tempfile.TemporaryDirectory(prefix="rljax-benchmark-") as folder:
        metrics = pathlib.Path(folder) / "run" / "metrics.jsonl"
        command = [sys.executable, "-m", "launch.train", f"--workdir={metrics.parent}", *flags]
        errors = pathlib.Path(folder) / "stderr"
        first, peak = None, 0
        with errors.open("w") as stderr, _running(command, stderr) as (process, start):
            while process.poll() is None:
                if first is None and metrics.exists() and metrics.stat().st_size:
                    first = time.perf_counter() - start
                peak = max(peak, _peak_bytes(process.pid))
                time.sleep(_POLL_SECONDS)
        if process.returncode or first is None:
            raise UsageError(f"{' '.join(command)} failed: {_last_line(errors.read_text())}")
    return Training(first, peak / 1e9)


@contextlib.contextmanager
def _running(command: Sequence[str], stderr: IO[str]) -> Iterator[tuple[subprocess.Popen, float]]:
    """A process that does not outlive the block, and when it was started."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        yield process, start
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _peak_bytes(pid: int) -> int:
    """The high-water mark of a process's resident set; 0 once it is gone.

    Not `ru_maxrss`: that starts from what the parent held when it forked.
    """
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(x.split()[1]) * 1024 for x in status.splitlines() if "VmHWM" in x), 0)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"
