"""The frames of one episode, for a video.

EnvPool renders most of its tasks itself, so that a video shows the very simulator that was trained
on. Where it cannot, and for in-graph environments, a twin is rendered: the environment of the same
name in Gymnasium, if it has the same observations and actions. No display is needed.

The environment runs in a process of its own: where OpenGL is missing, MuJoCo in EnvPool ends the
process that asks it for a frame, and this must not be the one that trains.
"""

import contextlib
import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple

import numpy as np

from rljax import sources
from rljax.envs import host_envpool, host_gymnasium
from rljax.types import EnvSpec, Observation

HOSTS = {"envpool": host_envpool, "gymnasium": host_gymnasium}
TWINS = {
    "cartpole": "CartPole-v1",
    "pendulum": "Pendulum-v1",
}  # in-graph copies of well-known tasks
SILENCE_SECONDS = 120  # after which the process that renders is given up


class Recording(NamedTuple):
    """Frames, uint8 `[height, width, 3]`, that of the reset first; or None and the reason why."""

    frames: list[np.ndarray] | None
    reason: str = ""


def render_episode(
    name: str,
    act: Callable[[Observation], np.ndarray],
    seed: int,
    max_steps: int,
    *,
    options: Mapping[str, Any] | None = None,
) -> Recording:
    """Runs one episode, `max_steps` steps at most, and keeps what a viewer would see.

    Args:
        name: as in `rljax.sources`.
        act: from an observation with a batch axis of 1 to an action with one; it may keep a carry.
        seed: of the environment.
        max_steps: where to stop an episode that does not end before.
        options: the task's own, as for training.

    Raises:
        ImportError: a package that the environment itself needs is not installed.
        ValueError: there is no such environment, or an option is wrong.
    """
    options = dict(options or {})
    source = sources.EnvSource(name, 1, seed, options=tuple(options.items()))
    spec = sources.open(source).spec
    prefix, task = sources.resolve(name)
    reasons = []
    for host, twin in _candidates(prefix, task):
        # a twin does not know the task's options
        recording = _record(
            host, twin, seed, options if host == prefix else {}, spec, act, max_steps
        )
        if recording.frames:
            return recording
        reasons.append(f"{host}:{twin}: {recording.reason}")
    return Recording(None, "; ".join(reasons) or f"{name} has no picture")


def serve(pipe: Connection) -> None:
    """What the process started by `render_episode` does: answers actions with steps and frames."""
    host, task, seed, options = pipe.recv()
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if "DISPLAY" not in os.environ:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("MUJOCO_GL", "egl")
    with contextlib.suppress(OSError):
        # EnvPool's MuJoCo looks for OpenGL among the libraries that were there, for the whole
        # process to see, when it was loaded itself
        ctypes.CDLL("libEGL.so.1", ctypes.RTLD_GLOBAL)
    env = HOSTS[host].make(task, 1, seed, options=options | {"render_mode": "rgb_array"})
    observation = env.reset()
    pipe.send((env.spec, observation, env.render()))
    while True:  # until it is killed
        timestep = env.step(pipe.recv())
        pipe.send((timestep, env.render()))


def _candidates(prefix: str, task: str) -> list[tuple[str, str]]:
    if prefix == "gymnasium":
        return [(prefix, task)]
    if prefix == "rljax":
        if task not in TWINS:
            return []
        task = TWINS[task]
    return [(host, task) for host in HOSTS if task in HOSTS[host].names()]


def _record(
    host: str,
    task: str,
    seed: int,
    options: dict[str, Any],
    spec: EnvSpec,
    act: Callable[[Observation], np.ndarray],
    max_steps: int,
) -> Recording:
    ours, theirs = Pipe()
    code = "from multiprocessing.connection import Connection; from rljax.envs import rendering; "
    code += f"rendering.serve(Connection({theirs.fileno()}))"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"},
            cwd=folder,  # MuJoCo leaves a file where it fails
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        theirs.close()
        try:
            ours.send((host, task, seed, options))
            shown, observation, frame = _receive(ours)
            if _alike(shown, spec):
                return Recording(_episode(ours, observation, frame, act, max_steps))
            return Recording(None, "it has other observations or actions")
        except (EOFError, ConnectionError):  # the process has ended; its last line says why
            log.seek(0)
            lines = [line.strip() for line in log if line.strip()]
            return Recording(None, lines[-1] if lines else "rendering ended without a word")
        except TimeoutError as error:
            return Recording(None, str(error))
        finally:
            ours.close()
            process.kill()
            process.wait()


def _episode(
    pipe: Connection,
    observation: Observation,
    frame: np.ndarray,
    act: Callable[[Observation], np.ndarray],
    max_steps: int,
) -> list[np.ndarray]:
    frames = [frame]
    for _ in range(max_steps):
        pipe.send(np.asarray(act(observation)))
        timestep, frame = _receive(pipe)
        frames.append(frame)
        if timestep.terminated[0] or timestep.truncated[0]:
            break
        observation = timestep.observation
    return frames


def _receive(pipe: Connection) -> Any:
    if not pipe.poll(SILENCE_SECONDS):
        raise TimeoutError(f"no frame within {SILENCE_SECONDS} s")
    return pipe.recv()


def _alike(one: EnvSpec, other: EnvSpec) -> bool:
    return (one.parts, one.action, one.has_mask) == (other.parts, other.action, other.has_mask)
