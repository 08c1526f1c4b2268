"""Actors as threads of the learner's process: Sebulba (Hessel et al. 2021, arXiv:2104.06272).

Each thread owns a pool and acts on one device, so simulators and inference of one actor go on while
another waits, and while the learner's devices learn. Where the threads' turns fall has no influence
on what they collect (`rljax.actors.base`).
"""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from rljax import rollout
from rljax.actors.base import ActorError, Job, Rollout, Work
from rljax.actors.watched import Stopped, Watched
from rljax.envs.base import HostEnv, JaxEnv

Device = Any  # jax.Device, which is no type to type checkers
_END_SECONDS = 30.0  # that closing waits for rollouts in progress; hosts' end at their next step


@dataclasses.dataclass(frozen=True)
class Threads:
    """Actors in this process, on these of its devices."""

    devices: tuple[int, ...] = ()  # of jax.local_devices(): the actors take turns; (): the first


def chosen_devices(indices: Sequence[int], flag: str) -> list[Device]:
    """These of `jax.local_devices()`; ValueError, naming the flag, where one is not there."""
    devices = jax.local_devices()
    text = f"--{flag}={','.join(map(str, indices))}"
    for index in indices:
        if not 0 <= index < len(devices):
            raise ValueError(
                f"{text} names device {index}, but this process has {len(devices)} device(s): "
                f"choose from 0 to {len(devices) - 1}."
            )
    if len(set(indices)) < len(indices):
        raise ValueError(f"{text} names a device twice: each one once is right.")
    return [devices[index] for index in indices]


class ThreadFleet:
    """A `Fleet` of threads, which start at once."""

    def __init__(
        self,
        work: Work,
        envs: Sequence[HostEnv | JaxEnv],
        states: Sequence[rollout.RolloutState] | None,
        devices: Sequence[Device],
    ) -> None:
        """Takes the pools over and starts one actor a pool.

        Args:
            work: what all of them do.
            envs: one pool an actor; closed with the fleet.
            states: where in-graph environments go on; None for pools, which start anew.
            devices: where policies act; actor i on the i-th of them, in turn.
        """
        self.restarts = 0
        self._work = work
        shared: rollout.Collector | None = None  # in-graph collectors are all the same functions
        self._actors: list[_Actor] = []
        for index, env in enumerate(envs):
            watched = Watched(env) if isinstance(env, HostEnv) else None
            if shared is None or watched:
                shared = rollout.make(
                    work.agent, watched or env, work.num_envs, work.length, work.collector
                )
            key = work.key_of(index, work.start_key)
            seat = _Seat(index, devices[index % len(devices)], env.spec.name)
            state = None if states is None else states[index]
            start = _start(shared, seat.device, state, key)
            self._actors.append(_Actor(seat, shared, start, watched, work.staleness + 1))
        for actor in self._actors:
            actor.thread.start()

    def submit(self, job: Job) -> None:
        """Hands a job to every actor, with the policy on its device."""
        devices = {actor.seat.device for actor in self._actors}
        placed = {device: jax.device_put(job.policy, device) for device in devices}
        # Ready before it is handed out: a thread that waits for it would hold up its siblings.
        jax.block_until_ready(list(placed.values()))
        for actor in self._actors:
            key = self._work.key_of(actor.seat.index, job.key)
            actor.jobs.put_nowait(job._replace(policy=placed[actor.seat.device], key=key))

    def gather(self, number: int) -> list[Rollout]:
        """The rollouts of job `number`; raises ActorError for a failed or a hanging actor."""
        timeout = self._work.timeout_seconds
        deadline = time.monotonic() + timeout
        return [actor.take(number, deadline, timeout) for actor in self._actors]

    def close(self) -> None:
        """Ends the threads, then closes the pools of those that ended; a second call is no harm."""
        for actor in self._actors:
            actor.stop()
        deadline = time.monotonic() + _END_SECONDS
        for actor in self._actors:
            actor.end(deadline)


class _Seat(NamedTuple):
    index: int
    device: Device
    env_name: str


class _Failure(NamedTuple):
    error: BaseException
    stage: str


class _Actor:
    """One thread with its two queues."""

    def __init__(
        self,
        seat: _Seat,
        collector: rollout.Collector,
        start: Callable[[], rollout.RolloutState],
        watched: Watched | None,
        queue_size: int,
    ) -> None:
        self.seat = seat
        self.jobs: queue.Queue[Job | None] = queue.Queue(queue_size)
        self.thread = threading.Thread(target=self._run, name=f"actor-{seat.index}", daemon=True)
        self._results: queue.Queue[Rollout | _Failure] = queue.Queue(queue_size)
        self._collector, self._start, self._watched = collector, start, watched
        self._stage = "starting"
        self._hangs = False

    @property
    def stage(self) -> str:
        """What it is doing, to be put behind "it was"."""
        inside = self._watched.inside if self._watched else ""
        return self._stage + (f", in {inside} of {self.seat.env_name}" if inside else "")

    def take(self, number: int, deadline: float, timeout: float) -> Rollout:
        """The next result; it must be that of job `number`."""
        try:
            result = self._results.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            self._hangs = True
            raise ActorError(
                f"actor {self.seat.index} gave no rollout within {timeout:g} seconds: it was "
                f"{self.stage}. A longer --actor_timeout waits longer; a checkpoint can be resumed."
            ) from None
        if isinstance(result, _Failure):
            error = result.error
            raise ActorError(
                f"actor {self.seat.index} failed while {result.stage}: "
                f"{type(error).__name__}: {error}"
            ) from error
        assert result.number == number, f"rollout {result.number} in the place of {number}"
        return result

    def stop(self) -> None:
        """Asks the thread to end, without waiting."""
        if self._watched:
            self._watched.stopped.set()
        _drain(self.jobs)
        self.jobs.put_nowait(None)
        _drain(self._results)  # a thread that waits for room in it goes on

    def end(self, deadline: float) -> None:
        """Waits for the thread to end and closes its pool; a hanging thread keeps both."""
        if self.thread.is_alive() and not self._hangs:
            self.thread.join(max(0.0, deadline - time.monotonic()))
        if self._watched and not self.thread.is_alive():
            self._watched.close()

    def _run(self) -> None:
        try:
            with jax.default_device(self.seat.device):
                self._work()
        except Stopped:
            pass
        except BaseException as error:  # the learner raises it
            self._results.put(_Failure(error, self.stage))

    def _work(self) -> None:
        state = self._start()
        while True:
            self._stage = "waiting for a policy"
            waiting = time.perf_counter()
            job = self.jobs.get()
            if job is None:
                return
            self._stage = f"collecting rollout {job.number}"
            start = time.perf_counter()
            state, trajectory, episodes = self._collector.collect(job.policy, state, job.key)
            jax.block_until_ready((trajectory, episodes))
            seconds = self._seconds(start - waiting, time.perf_counter() - start)
            kept = state if self._collector.resumable else None
            self._results.put(Rollout(job.number, job.version, kept, trajectory, episodes, seconds))

    def _seconds(self, waited: float, collected: float) -> dict[str, float]:
        parts = self._watched.split(collected) if self._watched else {}
        return {
            "time/queue_wait_actor_seconds": waited,
            "time/collect_seconds": collected,
            **parts,
        }


def _start(
    collector: rollout.Collector,
    device: Device,
    state: rollout.RolloutState | None,
    key: jax.Array,
) -> Callable[[], rollout.RolloutState]:
    if state is None:
        return lambda: collector.init(key)
    return lambda: jax.device_put(state, device)


def _drain(entries: "queue.Queue[Any]") -> None:
    try:
        while True:
            entries.get_nowait()
    except queue.Empty:
        pass
