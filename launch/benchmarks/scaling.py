"""What it costs to spread one update over more devices or processes of this machine.

    python -m launch.benchmark scaling --output=runs/benchmarks/scaling.json

The work is the same in every row: one PPO update from 4,096 rows by HalfCheetah-v4's preset (10
epochs of 32 minibatches), on 1, 2, 4 and 8 emulated devices of one process, and on 1, 2 and 4
processes of one device each, which meet over gloo. On a machine of few cores more devices cannot
be faster; what shows is what they lose: `scaling/update` falls with the time spent in collectives
and in waiting, and `scaling/collective` is one all-reduce of the parameters, of which an update
makes one a minibatch.

Each row is measured by processes of its own (`launch.benchmarks.scaling_worker`), compilation
apart.
"""

import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from launch.benchmarks import Options
from launch.benchmarks.table import Row
from rljax.config import UsageError

TAKES = ("repeats",)
_SPREADS = ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4))  # devices of a process, processes
_TIMEOUT = 600  # s, of one spread


def versions(options: Options) -> dict[str, str]:
    """There is no peer: rows compare with one device."""
    del options
    return {}


def rows(options: Options) -> Iterator[Row]:
    """Throughput and all-reduce of every spread; the peer is one device of one process."""
    alone: dict[str, float] = {}
    for devices, processes in _SPREADS:
        found = _measure(devices, processes, options.repeats)
        settings = {"devices": devices * processes, "processes": processes}
        for name, unit in (("update", "rows/s"), ("collective", "ms"), ("collective_share", "%")):
            samples = tuple(found[name])
            value = statistics.median(samples)
            peer = ("1 device", alone[name]) if name == "update" and alone else (None, None)
            yield Row(f"scaling/{name}", value, unit, settings, *peer, samples=samples)
            alone.setdefault(name, value)


def _measure(devices: int, processes: int, repeats: int) -> dict[str, Any]:
    """What the first of the processes reports."""
    with tempfile.TemporaryDirectory(prefix="rljax-scaling-") as folder:
        output = pathlib.Path(folder) / "report.json"
        port = _free_port()
        workers = []
        for index in range(processes):
            arguments = [str(x) for x in (devices, processes, index, port, repeats, output)]
            command = [sys.executable, "-m", "launch.benchmarks.scaling_worker", *arguments]
            flags = f"--xla_force_host_platform_device_count={devices}"
            environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
            if devices > 1:  # XLA runs one thread a device, and they wait for one another
                environment["NPROC"] = str(max(devices, os.cpu_count() or 1))
            workers.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        try:
            said = [worker.communicate(timeout=_TIMEOUT)[1] for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        for worker, errors in zip(workers, said, strict=True):
            if worker.returncode:
                last = "".join(errors.strip().splitlines()[-1:])
                raise UsageError(f"scaling on {processes} x {devices} devices failed: {last}")
        return json.loads(output.read_text())


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
