"""The code of others that a benchmark runs beside ours: in an environment and processes of its own.

A peer gets a job as JSON, its only argument, and prints its answer as JSON, the last line.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from launch.benchmarks import Options, processes
from rljax.config import UsageError, nearest

# Set for our own processes (launch.process): the peers run as their users would run them.
_OUR_VARIABLES = ("NPROC", "JAX_COMPILATION_CACHE_DIR")
_VERSIONS = "import importlib.metadata as m, json; print(json.dumps({p: m.version(p) for p in %r}))"


@dataclasses.dataclass(frozen=True)
class Peers:
    """Whom one benchmark compares with, and how they are run."""

    distributions: Mapping[str, str]  # of each peer, by its name on the command line
    script: str  # beside this file, that does a job
    runs_on: tuple[str, ...]  # further distributions whose versions matter
    target: str  # of the Makefile, that installs them
    python: pathlib.Path = Options.peer_python  # where it installs them

    def chosen(self, options: Options) -> tuple[str, ...]:
        """Those asked for; by default all."""
        return tuple(self.distributions) if options.peers is None else options.peers

    def versions(self, options: Options) -> dict[str, str]:
        """Of the peers and what they run on. Raises UsageError where they cannot be run."""
        for peer in self.chosen(options):
            if peer not in self.distributions:
                raise UsageError(f"unknown peer {peer!r}; {nearest(peer, self.distributions)}")
        if not self.chosen(options):
            return {}
        if not self._interpreter(options).is_file():
            raise UsageError(
                f"no Python of the peers at {self._interpreter(options)}: make it with `make "
                f"{self.target}`, give another with --peer_python, or measure without peers, "
                "--peers=."
            )
        wanted = (*self.distributions.values(), *self.runs_on)
        return json.loads(self._output(options, "-c", _VERSIONS % (wanted,)))

    def run(self, options: Options, job: dict[str, Any]) -> dict[str, Any]:
        """A peer's answer to the job. Raises UsageError where it fails."""
        script = pathlib.Path(__file__).with_name(self.script)
        return json.loads(self._output(options, str(script), json.dumps(job)).splitlines()[-1])

    def _interpreter(self, options: Options) -> pathlib.Path:
        """The one asked for; the default of the flag stands for each benchmark's own."""
        return self.python if options.peer_python == Options.peer_python else options.peer_python

    def _output(self, options: Options, *arguments: str) -> str:
        environment = {name: x for name, x in os.environ.items() if name not in _OUR_VARIABLES}
        return processes.output_of([str(self._interpreter(options)), *arguments], environment)
