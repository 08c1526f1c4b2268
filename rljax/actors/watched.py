"""A pool under watch: how long its steps take, where in it somebody is, and an end when asked."""

import threading
import time

import numpy as np

from rljax.envs.base import HostEnv, TimeStep, XlaEnv
from rljax.types import Observation


class Stopped(Exception):
    """Ends a rollout that nobody waits for any more."""


class Watched:
    """A `HostEnv` around another."""

    def __init__(self, env: HostEnv) -> None:
        self.spec, self.num_envs = env.spec, env.num_envs
        self.inside = ""  # the function that its caller is in, or that failed; "": none
        self.stopped = threading.Event()
        self._env = env
        self._seconds = 0.0

    def reset(self) -> Observation:
        """As the pool's."""
        self.inside = "env.reset"
        observation = self._env.reset()
        self.inside = ""
        return observation

    def step(self, action: np.ndarray) -> TimeStep:
        """As the pool's; raises Stopped once `stopped` is set."""
        if self.stopped.is_set():
            raise Stopped
        self.inside = "env.step"
        start = time.perf_counter()
        step = self._env.step(action)
        self._seconds += time.perf_counter() - start
        self.inside = ""  # after an error it stays
        return step

    def xla(self) -> XlaEnv | None:
        """As the pool's; steps of XLA pass unseen."""
        return self._env.xla()

    def close(self) -> None:
        """As the pool's."""
        self._env.close()

    def split(self, collected: float) -> dict[str, float]:
        """Of `collected` seconds, those in `step` and the rest; {} where XLA stepped the pool."""
        in_env, self._seconds = self._seconds, 0.0
        if not in_env:
            return {}
        return {
            "time/actor_env_seconds": in_env,
            "time/actor_inference_seconds": collected - in_env,
        }
