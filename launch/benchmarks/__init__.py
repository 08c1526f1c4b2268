"""What `launch.benchmark` measures: one module per benchmark, imported only when asked for.

A module has two functions of `Options`: `versions`, the packages that it compares with (raises
UsageError, before anything is measured, where one is missing), and `rows`, which measures and
yields one `table.Row` after another.
"""

import dataclasses
import pathlib

BENCHMARKS = {  # name on the command line -> module
    "ppo": "launch.benchmarks.ppo",
    "scores": "launch.benchmarks.scores",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says; no row depends on anything else."""

    repeats: int = 3  # timed windows per figure, of which the median is reported
    env: str | None = None  # only the settings of this environment
    num_threads: int = 2  # of the pool, ours and the peers' alike
    peers: tuple[str, ...] | None = None  # None: those that the benchmark compares with
    peer_python: pathlib.Path = pathlib.Path(".venv-bench/bin/python")
