"""Collectors: run a policy for T rows in B environments. Three of them, one `Trajectory`.

    host           a pool stepped from Python, whatever it is; the policy is one jitted call a row
    envpool_xla    EnvPool's step as an XLA call inside one jitted scan; CPU backend only
    in_graph       environments that are JAX functions, inside one jitted scan

Every collector is a pair of functions over `RolloutState`. Only the in-graph one's state is all
there is: a simulator's cannot be saved, so after a resume its episodes start anew.
"""

import enum
import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from rljax import row_keys
from rljax.agent import Agent
from rljax.envs.base import HostEnv, JaxEnv, TimeStep
from rljax.types import Episodes, Observation, Trajectory, Transition


class Kind(enum.Enum):
    """Which collector; `AUTO` picks the fastest that the source and the backend allow."""

    AUTO = "auto"
    HOST = "host"
    ENVPOOL_XLA = "envpool_xla"
    IN_GRAPH = "in_graph"


class RolloutState(NamedTuple):
    """What one rollout hands to the next; arrays `[B, ...]`."""

    env: Any  # in-graph states, or the pool's XLA token, or () on the host
    observation: Observation
    ended: Array  # bool: the last row ended an episode, so the next one is not valid
    carry: Any  # the agent's
    episode_return: Array  # float32, of the running episode
    episode_length: Array  # int32


class Collector(NamedTuple):
    """`init(key)` starts the environments; `collect(policy, state, key)` runs T rows of them."""

    init: Callable[[Array], RolloutState]
    collect: Callable[[Any, RolloutState, Array], tuple[RolloutState, Trajectory, Episodes]]
    resumable: bool  # whether a checkpoint of the rollout state brings the environments back


def resolve(env: HostEnv | JaxEnv, kind: Kind) -> Kind:
    """The collector that `kind` means for this source; ValueError when it does not fit.

    Nothing is stepped or compiled.
    """
    if isinstance(env, JaxEnv):
        if kind not in (Kind.AUTO, Kind.IN_GRAPH):
            raise ValueError(
                f"--collector={kind.value} needs a simulator on the host, and {env.spec.name} "
                "is a JAX function: use --collector=in_graph."
            )
        return Kind.IN_GRAPH
    if kind is Kind.IN_GRAPH:
        raise ValueError(
            f"--collector=in_graph needs a JAX environment such as rljax:cartpole; "
            f"{env.spec.name} runs on the host: use --collector=host or envpool_xla."
        )
    if kind is Kind.HOST or env.xla() is not None:
        return Kind.HOST if kind is Kind.HOST else Kind.ENVPOOL_XLA
    if kind is Kind.ENVPOOL_XLA:
        raise ValueError(
            f"--collector=envpool_xla needs an EnvPool task and the CPU backend; {env.spec.name} "
            f"on {jax.default_backend()} has no XLA step: use --collector=host."
        )
    return Kind.HOST


def make(agent: Agent, env: HostEnv | JaxEnv, num_envs: int, length: int, kind: Kind) -> Collector:
    """The collector of `length` rows of `num_envs` environments for this agent and this source.

    Raises ValueError when `kind` does not fit the source or the backend.
    """
    kind = resolve(env, kind)
    if isinstance(env, JaxEnv):
        return in_graph(agent, env, num_envs, length)
    if kind is Kind.ENVPOOL_XLA:
        return envpool_xla(agent, env, length)
    return host(agent, env, length)


def in_graph(agent: Agent, env: JaxEnv, num_envs: int, length: int) -> Collector:
    """Environments as JAX functions, `vmap`ped and scanned."""

    @jax.jit
    def init(key: Array) -> RolloutState:
        states, observation = jax.vmap(env.reset)(row_keys.split(key, num_envs))
        return _fresh(agent, states, observation, num_envs)

    def step(states: Any, action: Array, key: Array) -> tuple[Any, TimeStep]:
        return jax.vmap(env.step)(states, action, row_keys.split(key, num_envs))

    collect = jax.jit(partial(_scan, agent, step, length))
    return Collector(init, collect, resumable=True)


def envpool_xla(agent: Agent, env: HostEnv, length: int) -> Collector:
    """A pool stepped by XLA inside one scan."""
    xla = env.xla()
    assert xla is not None  # `resolve` saw to it

    def step(handle: Any, action: Array, key: Array) -> tuple[Any, TimeStep]:
        del key  # the pool has its own generator
        return xla.step(handle, action)

    collect = jax.jit(partial(_scan, agent, step, length))

    def init(key: Array) -> RolloutState:
        del key
        observation = jax.tree.map(jnp.asarray, env.reset())
        return _fresh(agent, xla.handle, observation, env.num_envs)

    return Collector(init, collect, resumable=False)


def host(agent: Agent, env: HostEnv, length: int) -> Collector:
    """A pool stepped from Python: works for every source and every backend."""
    act = _jitted_act(agent)

    def init(key: Array) -> RolloutState:
        del key
        return jax.tree.map(np.asarray, _fresh(agent, (), env.reset(), env.num_envs))

    def collect(
        policy: Any, state: RolloutState, key: Array
    ) -> tuple[RolloutState, Trajectory, Episodes]:
        observation, ended, carry = state.observation, state.ended, state.carry
        rows, scored = [], []
        for row in range(length):
            carry, action, extras = act(policy, carry, observation, ended, key, np.int32(row))
            step = env.step(np.asarray(action))
            rows.append(
                Transition(
                    observation,
                    action,
                    step.reward,
                    (1 - step.terminated).astype(np.float32),
                    ~ended,
                    extras,
                )
            )
            ended = step.ended
            scored.append(step.scored)
            observation = step.observation
        transitions = jax.tree.map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *rows)
        scores, dones = (np.stack(column) for column in zip(*scored, strict=True))
        returns, lengths, episodes = _episodes(
            state.episode_return, state.episode_length, scores, transitions.valid, dones
        )
        trajectory = Trajectory(transitions, observation, state.carry)
        state = RolloutState((), observation, ended, carry, returns, lengths)
        return state, trajectory, episodes

    return Collector(init, collect, resumable=False)


def _fresh(agent: Agent, env: Any, observation: Observation, num_envs: int) -> RolloutState:
    return RolloutState(
        env,
        observation,
        ended=jnp.zeros(num_envs, bool),
        carry=agent.initial_carry(num_envs),
        episode_return=jnp.zeros(num_envs, jnp.float32),
        episode_length=jnp.zeros(num_envs, jnp.int32),
    )


def decide(
    agent: Agent,
    policy: Any,
    carry: Any,
    observation: Observation,
    ended: Array | np.ndarray,
    key: Array,
    greedy: bool,
) -> tuple[Any, Array, dict[str, Array]]:
    """`agent.act`, with the carry started anew where the last row `[B]` ended an episode.

    That row's successor is not valid (`rljax.types`): it still sees the old episode, so the carry
    that it leaves behind is replaced.
    """
    carry, action, extras = agent.act(policy, carry, observation, key, greedy)

    def restart(initial: Array, new: Array) -> Array:
        return jnp.where(ended.reshape(ended.shape + (1,) * (new.ndim - 1)), initial, new)

    return jax.tree.map(restart, agent.initial_carry(len(ended)), carry), action, extras


def _stored(
    agent: Agent, policy: Any, carry: Any, observation: Observation, ended: Array, key: Array
) -> tuple[Any, Array, dict[str, Array]]:
    """A sampled decision with the extras that rollouts keep."""
    carry, action, extras = decide(agent, policy, carry, observation, ended, key, False)
    return carry, action, {name: extras[name] for name in agent.stores}


@functools.lru_cache(maxsize=8)  # compiled once for all the pools that an agent acts in
def _jitted_act(agent: Agent) -> Callable[..., tuple[Any, Array, dict[str, Array]]]:
    """The decision of one row of a rollout, by the rollout's key."""

    @jax.jit
    def act(
        policy: Any, carry: Any, observation: Observation, ended: Array, key: Array, row: Array
    ) -> tuple[Any, Array, dict[str, Array]]:
        return _stored(agent, policy, carry, observation, ended, jax.random.fold_in(key, row))

    return act


def _scan(
    agent: Agent,
    env_step: Callable[[Any, Array, Array], tuple[Any, TimeStep]],
    length: int,
    policy: Any,
    state: RolloutState,
    key: Array,
) -> tuple[RolloutState, Trajectory, Episodes]:
    def row(
        running: tuple[Any, Observation, Array, Any], key: Array
    ) -> tuple[tuple[Any, Observation, Array, Any], tuple[Transition, tuple[Array, Array]]]:
        env, observation, ended, carry = running
        carry, action, extras = _stored(agent, policy, carry, observation, ended, key)
        env, step = env_step(env, action, jax.random.fold_in(key, 1))
        transition = Transition(
            observation,
            action,
            step.reward,
            1.0 - step.terminated.astype(jnp.float32),
            ~ended,
            extras,
        )
        return (env, step.observation, step.ended, carry), (transition, step.scored)

    running = (state.env, state.observation, state.ended, state.carry)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(length))  # as the host's
    running, (transitions, (scores, dones)) = jax.lax.scan(row, running, keys)
    env, observation, ended, carry = running
    returns, lengths, episodes = _episodes(
        state.episode_return, state.episode_length, scores, transitions.valid, dones
    )
    trajectory = Trajectory(transitions, observation, state.carry)
    return RolloutState(env, observation, ended, carry, returns, lengths), trajectory, episodes


@jax.jit
def _episodes(
    returns: Array, lengths: Array, scores: Array, valid: Array, dones: Array
) -> tuple[Array, Array, Episodes]:
    """Carries the running episodes through T rows, and totals those that ended in them.

    `scores` and `dones` are `TimeStep.scored`; a game of several lives has as many invalid rows.
    """

    def row(running: tuple[Array, Array], x: tuple[Array, Array, Array]) -> Any:
        reward, valid, done = x
        total, steps = running[0] + reward, running[1] + valid
        return (jnp.where(done, 0.0, total), jnp.where(done, 0, steps)), (total, steps)

    xs = (scores, valid, dones)
    (returns, lengths), (totals, steps) = jax.lax.scan(row, (returns, lengths), xs)
    episodes = Episodes(
        count=jnp.sum(dones),
        return_sum=jnp.sum(jnp.where(dones, totals, 0.0)),
        length_sum=jnp.sum(jnp.where(dones, steps, 0)),
    )
    return returns, lengths, episodes
