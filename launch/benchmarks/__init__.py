"""What `launch.benchmark` measures: one module per benchmark, imported only when asked for.

A module has two functions of `Options`: `versions`, the packages that it compares with (raises
UsageError, before anything is measured, where one is missing), and `rows`, which measures and
yields one `table.Row` after another.
"""

import dataclasses
import pathlib

BENCHMARKS = {"ppo": "launch.benchmarks.ppo"}  # name on the command line -> module


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says; no row depends on anything else."""

    repeats: int = 3  # timed windows per figure, of which the median is reported
    env: str | None = None  # only the settings of this environment
    num_threads: int = 2  # of the pool, ours and the peers' alike
    peers: tuple[str, ...] = ()
    peer_python: pathlib.Path = pathlib.Path(".venv-bench/bin/python")
