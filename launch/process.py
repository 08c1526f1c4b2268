"""What a process of ours sets before JAX is imported, and how it hears that it must stop."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType


def prepare() -> None:
    """Environment variables that JAX reads at import; those already set are left alone."""
    if "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        # Size of XLA's CPU thread pool: emulated devices deadlock when it is less than twice their
        # number. On a single device more threads than cores would halve the speed of updates.
        os.environ.setdefault("NPROC", "32")
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    cache = pathlib.Path(home) / "rljax" / "compiled"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    # Several processes: JAX's dump of a lost one is silenced, `rljax.peers` has the sentence.
    alone = not any(arg.lstrip("-").partition("=")[0] == "distributed" for arg in sys.argv)
    if not alone:  # each collective waits in a thread of the pool, which must not be all it has
        os.environ.setdefault("NPROC", str(max(8, os.cpu_count() or 1)))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if alone else "4")


@dataclasses.dataclass
class Stop:
    """Whether to stop, and for which signal; it may change between any two instructions."""

    signal: int | None = None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """SIGINT and SIGTERM set the flag: the work may end in order. A second one acts as always."""
    stop = Stop()
    before = {}

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        stop.signal = number
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
