"""The whole way in one command: train, evaluate, export, serve, and ask over gRPC and REST.

    python -m launch.demo

Everything lands in --workdir, which is emptied first; the commands it runs are printed, to be typed
by hand the next time.
"""

import contextlib
import functools
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

from absl import flags as absl_flags

from launch import flags, process

FLAGS = absl_flags.FlagValues()
absl_flags.DEFINE_string("workdir", "runs/demo", "Emptied, then filled.", flag_values=FLAGS)
absl_flags.DEFINE_integer("requests", 1000, "Timed gRPC calls.", 1, flag_values=FLAGS)

_MODEL = "cartpole"
_READY_SECONDS = 60


def main(argv: list[str]) -> int:
    """Runs the demo; prints a table of what came out."""
    del argv
    from rich.console import Console
    from rich.table import Table

    from launch import results

    started = time.monotonic()
    workdir = pathlib.Path(FLAGS.workdir)
    if workdir.exists() and any(workdir.iterdir()):
        if not (workdir / "config.json").exists():
            raise flags.UsageError(f"{workdir} holds something else: give an empty --workdir.")
        shutil.rmtree(workdir)
    models = workdir / "models" / _MODEL
    _run("train", "--agent=ppo", "--env=CartPole-v1", f"--workdir={workdir}", "--eval_every=0")
    _run("evaluate", f"--workdir={workdir}", "--episodes=100")
    _run("export", f"--workdir={workdir}", f"--export_dir={models}")
    with _server(models) as (grpc_port, rest_port):
        served = _ask_grpc(f"localhost:{grpc_port}", FLAGS.requests)
        _ask_rest(rest_port)
    numbers = results.update(workdir, served)

    table = Table(box=None, show_header=False)
    saved = sum(f.stat().st_size for f in (models / "1").rglob("*") if f.is_file())
    rows = {
        "return of the evaluation": f"{numbers['eval/return_mean']:.1f} (greedy, 100 episodes)",
        "training": f"{numbers['time/steps_per_second']:,.0f} steps/s",
        "SavedModel": f"{saved / 1e6:.2f} MB in {models / '1'}",
        "parity with JAX": f"{numbers['export/parity_max_abs_diff']:.1e} at most",
        "gRPC latency": f"p50 {numbers['serving/grpc_p50_ms']:.2f} ms, "
        f"p99 {numbers['serving/grpc_p99_ms']:.2f} ms",
        "episode played over gRPC": f"{numbers['serving/episode_return']:.0f}",
        "learning curve": str(workdir / "plots" / "learning_curve.png"),
        "numbers": str(workdir / results.FILE),
        "whole demo": f"{time.monotonic() - started:.0f} s",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    Console(soft_wrap=True).print(table)
    return 0


def _run(script: str, *arguments: str) -> None:
    """Runs one of our scripts as a user would; its failure is ours."""
    print(f"\n$ python -m launch.{script} {' '.join(arguments)}", flush=True)
    code = subprocess.run([sys.executable, "-m", f"launch.{script}", *arguments]).returncode
    if code:
        sys.exit(code)


@contextlib.contextmanager
def _server(models: pathlib.Path) -> Iterator[tuple[int, int]]:
    """The model server, ready, on two free ports; stopped in order at the end."""
    ports = _free_port(), _free_port()
    arguments = [
        f"--model_name={_MODEL}",
        f"--model_base_path={models.absolute()}",
        f"--port={ports[0]}",
        f"--rest_api_port={ports[1]}",
    ]
    print(f"\n$ python -m launch.serve {' '.join(arguments)}", flush=True)
    server = subprocess.Popen([sys.executable, "-m", "launch.serve", *arguments])
    try:
        url = f"http://localhost:{ports[1]}/v1/models/{_MODEL}"
        deadline = time.monotonic() + _READY_SECONDS
        while not _available(url):
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit("the model server did not become ready")
            time.sleep(0.1)
        yield ports
    finally:
        server.terminate()
        server.wait(30)


def _available(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            states = json.load(answer)["model_version_status"]
    except OSError:  # not listening yet, or not loaded yet
        return False
    return any(version["state"] == "AVAILABLE" for version in states)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _ask_grpc(address: str, requests: int) -> dict[str, float]:
    """Plays an episode whose every action comes over gRPC, going on to `requests` timed calls."""
    import numpy as np

    from rljax import sources
    from rljax.envs.base import HostEnv
    from serving.client import PolicyClient, Source

    env = sources.open(sources.EnvSource("CartPole-v1", num_envs=1, seed=7))
    assert isinstance(env, HostEnv)
    observation, total, playing, seconds = env.reset(), 0.0, True, []
    with PolicyClient(address, _MODEL, timeout_ms=1000) as client:
        while len(seconds) < requests or playing:
            start = time.perf_counter()
            decision = client.act(observation.features[0])
            seconds.append(time.perf_counter() - start)
            assert decision.source is Source.MODEL
            if len(seconds) == 1:
                print(f"\ngRPC  {observation.features[0].round(3).tolist()} -> {decision}")
            step = env.step(np.atleast_1d(decision.action))
            if playing:
                total += float(step.reward[0])
                playing = not (step.terminated | step.truncated)[0]
            observation = step.observation
    p50, p99 = np.percentile(np.array(seconds[1:]) * 1e3, [50, 99])
    return {
        "serving/grpc_p50_ms": float(p50),
        "serving/grpc_p99_ms": float(p99),
        "serving/episode_return": total,
    }


def _ask_rest(port: int) -> None:
    url = f"http://localhost:{port}/v1/models/{_MODEL}:predict"
    body = json.dumps({"instances": [[0.01, -0.02, 0.03, 0.04]]}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=10) as answer:
        prediction: Any = json.load(answer)["predictions"][0]
    print(f"REST  {body.decode()} -> {prediction}\n")


if __name__ == "__main__":
    process.prepare()
    flags.run(main, flags_parser=functools.partial(flags.parse_script, flag_values=FLAGS))
