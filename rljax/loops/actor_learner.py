"""Actors collect, a learner learns (Sebulba: Hessel et al. 2021, arXiv:2104.06272).

Update u learns from rollout u of every actor, side by side along B. Rollout u is collected with the
policy of `max(0, u - staleness)` updates, exactly, however fast anybody is: staleness 0 is the
on-policy loop with its environments spread over actors, 1 collects the next rollout while the
learner learns from this one (Cleanba: Huang et al. 2023, arXiv:2310.00036).

Any agent of the on-policy loop can be driven so; for staleness above 0 it should correct for it, as
V-trace does.
"""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from rljax import distributed, faults, minibatches, rollout, sharding
from rljax.actors.base import Fleet, Job, Work
from rljax.actors.ray_actors import Ray, RayFleet, import_ray
from rljax.actors.threads import Device, ThreadFleet, Threads, chosen_devices
from rljax.agent import Agent
from rljax.envs.base import HostEnv, JaxEnv
from rljax.loops import on_policy
from rljax.loops.episodes import Window
from rljax.sources import Pools
from rljax.types import Episodes, Metrics, Trajectory


@dataclasses.dataclass(frozen=True)
class Config:
    """Who collects what the on-policy loop `inner` would, and where it is learned from."""

    inner: on_policy.Config  # its num_envs and its rows are those of all actors together
    actors: Threads | Ray
    num_actors: int = 1
    staleness: int = 0  # updates by which the policy of a rollout is behind
    learner_devices: tuple[int, ...] = ()  # of jax.local_devices(); (): the first inner.num_devices
    timeout_seconds: float = 600.0  # for one rollout of an actor, its compilation included

    @property
    def rows(self) -> int:
        """Rows of one update, over all actors."""
        return self.inner.rows

    @property
    def last_step(self) -> int:
        """Where training ends: the last whole update within the budget."""
        return self.inner.last_step

    @property
    def seed(self) -> int:
        """Of parameters and actions."""
        return self.inner.seed


class State(NamedTuple):
    """All that a resume needs. Without staleness an `on_policy.State` has it all."""

    train: Any
    rollout: rollout.RolloutState | None  # of all environments; None where they start anew
    older: tuple[Any, ...]  # policies of the last `staleness` updates, which rollouts still act by


def init(agent: Agent, source: Pools | HostEnv | JaxEnv, config: Config) -> State | on_policy.State:
    """The state before the first step; may be traced. One environment stands for all pools."""
    if isinstance(source, Pools):
        source = source.envs[0]
    train, running = on_policy.init(agent, source, config.inner)
    if isinstance(config.actors, Ray):
        running = None
    return _state(train, running, [_copy(train.policy)] * config.staleness)


def check(pools: Pools, config: Config) -> None:
    """Raises ValueError where environments, actors, collector and devices do not fit together."""
    inner, devices = config.inner, _mesh(config).devices.size
    if config.staleness < 0:
        raise ValueError(f"--staleness={config.staleness} is negative: 0 or more is right.")
    if not config.timeout_seconds > 0:
        raise ValueError(f"--actor_timeout={config.timeout_seconds:g} must be positive.")
    if len(pools.sources) != config.num_actors:
        raise ValueError(
            f"{config.num_actors} actors need as many pools, not {len(pools.sources)}."
        )
    if inner.num_envs % devices:
        raise ValueError(
            f"num_envs={inner.num_envs} cannot be split over {devices} devices: choose a multiple "
            f"of {devices}, or set --learner_devices."
        )
    minibatches.groups(inner.num_envs, inner.rows // inner.num_minibatches, devices)
    if isinstance(config.actors, Threads):
        _actor_devices(config.actors, config.num_actors)
    else:
        import_ray()
        if inner.collector is rollout.Kind.ENVPOOL_XLA:
            return  # Ray's actors act on CPUs, whatever the backend is here
    for env in pools.envs:
        rollout.resolve(env, inner.collector)


def run(
    agent: Agent, pools: Pools, state: State | on_policy.State, config: Config, first_step: int
) -> Iterator[tuple[int, State | on_policy.State, Metrics]]:
    """Trains from `first_step` on; yields once an update. Raises what `check` raises, at once.

    Takes the pools over: they are closed, and the actors end, when the iterator ends, is closed or
    raises. The arrays of a yielded `state.train` are donated to the next update: save or copy them
    before asking for it. An actor that fails, hangs or cannot start raises ActorError, and the
    state yielded last is still whole then.
    """
    check(pools, config)
    mesh = _mesh(config)
    learn = sharding.data_parallel(agent.update, mesh, config.inner.parallel)
    return _updates(agent, pools, state, config, first_step, learn, mesh)


def _updates(
    agent: Agent,
    pools: Pools,
    state: State | on_policy.State,
    config: Config,
    first_step: int,
    learn: Callable[[Any, Any, Array], tuple[Any, Metrics]],
    mesh: Mesh,
) -> Iterator[tuple[int, State | on_policy.State, Metrics]]:
    first, last = first_step // config.rows, config.last_step // config.rows
    if first >= last:
        return
    train = sharding.replicate(state.train, mesh)
    # Of the last staleness + 1 updates: by the oldest acts the rollout that is learned from next,
    # by the newest the one that is handed out next.
    older = state.older if isinstance(state, State) else ()
    policies = collections.deque(older, maxlen=config.staleness + 1)
    policies.append(_copy(sharding.local(train.policy)))
    running = sharding.share(state.rollout)
    window = Window()
    device = mesh.local_mesh.devices.flat[0]

    def submit(number: int, policy: Any) -> None:
        if number < last:
            version = max(0, number - config.staleness)
            key, _ = on_policy.keys(config.seed, number)
            fleet.submit(Job(number, version, policy, key))

    with contextlib.closing(_fleet(agent, pools, running, config)) as fleet:
        for ahead, policy in enumerate(policies):
            submit(first + ahead, policy)
        for update in range(first, last):
            start = time.perf_counter()
            rollouts = fleet.gather(update)
            gathered = time.perf_counter()
            trajectory = _join([each.trajectory for each in rollouts], device)
            fault = faults.find(trajectory.transitions)
            joined = time.perf_counter()
            _, learn_key = on_policy.keys(config.seed, update)
            train, metrics = learn(train, trajectory, learn_key)
            # Once an update: with more in flight, emulated devices may deadlock.
            metrics = sharding.local(jax.block_until_ready(metrics))
            faults.check(fault, pools.spec.name, update * config.rows, config.inner.num_envs)
            learned = time.perf_counter()
            # A copy, because the next update donates what the actors would act by.
            policies.append(_copy(sharding.local(train.policy)))
            submit(update + 1 + config.staleness, policies[-1])
            episodes = _total([each.episodes for each in rollouts])
            metrics |= window.add(distributed.total(episodes))
            metrics |= _means([each.seconds for each in rollouts])
            metrics["time/queue_wait_learner_seconds"] = gathered - start
            metrics["time/learn_seconds"] = learned - joined
            metrics["time/transfer_seconds"] = joined - gathered + time.perf_counter() - learned
            metrics["actor/staleness"] = update - min(each.version for each in rollouts)
            metrics["actor/restarts"] = fleet.restarts
            older = list(policies)[: config.staleness]
            ends = sharding.united(_join_states([each.state for each in rollouts], device))
            yield (update + 1) * config.rows, _state(train, ends, older), metrics


def _fleet(
    agent: Agent, pools: Pools, running: rollout.RolloutState | None, config: Config
) -> Fleet:
    inner, count = config.inner, config.num_actors
    here = inner.num_envs // jax.process_count()
    each = here // count
    work = Work(
        agent,
        tuple(jax.process_index() * here + i * each for i in range(count)),
        each,
        inner.rollout_length,
        inner.collector,
        start_key=on_policy.keys(config.seed, -1)[1],
        staleness=config.staleness,
        timeout_seconds=config.timeout_seconds,
    )
    if isinstance(config.actors, Ray):
        return RayFleet(work, pools.sources, config.actors)
    devices = _actor_devices(config.actors, count)
    states = None
    if running is not None:
        states = [_part(running, i * each, (i + 1) * each) for i in range(count)]
    return ThreadFleet(work, pools.envs, states, devices)


def _mesh(config: Config) -> Mesh:
    chosen_devices(config.learner_devices, "learner_devices")
    return sharding.mesh(config.inner.num_devices, config.learner_devices)


def _actor_devices(threads: Threads, num_actors: int) -> list[Device]:
    devices = chosen_devices(threads.devices or (0,), "actor_devices")
    if len(devices) > num_actors:
        raise ValueError(
            f"--actor_devices names {len(devices)} devices for {num_actors} actor(s): "
            "name as many as there are actors, or fewer."
        )
    return devices


def _copy(policy: Any) -> Any:
    return jax.tree.map(jnp.copy, policy)


def _state(train: Any, running: Any, older: Sequence[Any]) -> State | on_policy.State:
    return State(train, running, tuple(older)) if older else on_policy.State(train, running)


def _part(running: rollout.RolloutState, start: int, stop: int) -> rollout.RolloutState:
    return jax.tree.map(lambda x: x[start:stop], running)


def _join_states(
    states: Sequence[rollout.RolloutState | None], device: Device
) -> rollout.RolloutState | None:
    """The inverse of `_part`; None where there is nothing to keep."""
    if states[0] is None:
        return None
    return jax.tree.map(lambda *leaves: _along(0, leaves, device), *states)


def _join(trajectories: Sequence[Trajectory], device: Device) -> Trajectory:
    """One trajectory of all environments: on the host if they are, else on the device."""

    def join(axis: int, *parts: Any) -> Any:
        return jax.tree.map(lambda *leaves: _along(axis, leaves, device), *parts)

    return jax.block_until_ready(jax.tree.map(join, sharding.TRAJECTORY_AXES, *trajectories))


def _along(axis: int, leaves: Sequence[Array | np.ndarray], device: Device) -> Array | np.ndarray:
    if all(isinstance(leaf, np.ndarray) for leaf in leaves):
        return np.concatenate(leaves, axis) if len(leaves) > 1 else leaves[0]
    placed = [jax.device_put(leaf, device) for leaf in leaves]
    return jnp.concatenate(placed, axis) if len(placed) > 1 else placed[0]


def _total(episodes: Sequence[Episodes]) -> Episodes:
    return jax.tree.map(lambda *counts: np.sum([np.asarray(x) for x in counts], 0), *episodes)


def _means(seconds: Sequence[dict[str, float]]) -> dict[str, float]:
    names = {name for each in seconds for name in each}
    return {name: float(np.mean([each.get(name, 0.0) for each in seconds])) for name in names}
