"""The off-policy loop: budget and ratio, one program or many calls, resume, devices, memory."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import dqn, sac
from rljax import checkpoint, rollout, sharding, sources
from rljax.agent import PRIORITY, Agent
from rljax.loops import iterations, off_policy
from rljax.loops.off_policy import Replay
from rljax.replay import memory
from rljax.types import Box, EnvSpec

DQN = dqn.Config(
    total_steps=4 * 3 * 20,
    num_envs=4,
    rollout_length=3,
    num_updates=2,
    learning_starts=50,  # the fifth iteration is the first to have 50 rows
    replay_capacity=80,  # comes round
    batch_size=8,
    target_period=4,
    num_steps=2,
    hidden_sizes=(8,),
    learning_rate=1e-2,
    prioritized=True,
)
SAC = sac.Config(
    total_steps=4 * 2 * 20,
    num_envs=4,
    rollout_length=2,
    num_updates=2,
    learning_starts=20,
    replay_capacity=80,
    batch_size=8,
    hidden_sizes=(8,),
)


def loop_of(module, config, **changes):
    changes = {"seed": 5, "num_devices": 1, "iterations_per_call": 3} | changes
    return dataclasses.replace(module.loop(config), **changes)


def parts(module: Any = dqn, config: Any = DQN, name="rljax:cartpole"):
    env = sources.open(sources.EnvSource(name, config.num_envs, seed=5))
    return module.make(config, env.spec), env


class Trained(NamedTuple):
    steps: list[int]
    metrics: tuple
    state: iterations.State  # on the host, keys as data


def train(agent, env, loop):
    """A run from its start to its end."""
    run = off_policy.run(agent, env, off_policy.init(agent, env, loop), loop, 0)
    steps, states, metrics = zip(*run, strict=True)
    return Trained(list(steps), metrics, on_host(states[-1]))


def on_host(state):
    def data(x):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return jax.device_get(jax.tree.map(data, state))


@functools.cache
def straight(name):
    """An undisturbed run of DQN, with priorities and two steps, or of SAC; in one program."""
    module, config, env = CASES[name]
    return train(*parts(module, config, env), loop_of(module, config))


CASES = {"dqn": (dqn, DQN, "rljax:cartpole"), "sac": (sac, SAC, "rljax:pendulum")}


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_it_spends_the_budget_and_yields_every_few_iterations():
    trained = straight("dqn")
    assert trained.steps == [36, 72, 108, 144, 180, 216, 240]  # 3 of 12 rows, and the rest
    assert trained.state.train.updates == 2 * (20 - 4)  # iterations 4 to 19 learn
    sizes = [int(metrics["replay/size"]) for metrics in trained.metrics]
    assert sizes == [36, 72, 80, 80, 80, 80, 80]


def test_metrics_are_there_once_something_is_learned():
    first, second, *_ = straight("dqn").metrics
    assert not [name for name in first if name.startswith(("loss/", "value/"))]
    assert second.keys() >= {"loss/q", "value/mean", "policy/epsilon", "episode/return_mean"}
    assert PRIORITY not in second
    assert all(np.isfinite(x) for metrics in straight("dqn").metrics for x in metrics.values())


def test_the_last_part_of_a_rollout_is_not_begun():
    loop = loop_of(dqn, DQN, total_steps=12 * 6 + 11, learning_starts=0)
    assert loop.last_step == 72
    assert train(*parts(), loop).steps == [36, 72]


@pytest.mark.parametrize(
    ("learning_starts", "num_steps", "first"),
    [(0, 1, 0), (0, 3, 1), (12, 1, 0), (13, 1, 1), (50, 1, 4)],  # 3 steps need 16 of 12 rows
)
def test_learning_starts_when_rows_and_successors_are_there(learning_starts, num_steps, first):
    replay = dataclasses.replace(loop_of(dqn, DQN).replay, num_steps=num_steps)
    loop = loop_of(dqn, DQN, learning_starts=learning_starts, replay=replay)
    assert loop.first_learning == first


def test_the_first_iterations_only_collect():
    loop = loop_of(dqn, DQN, iterations_per_call=1, learning_starts=13, total_steps=12 * 3)
    learned = ["loss/q" in metrics for metrics in train(*parts(), loop).metrics]
    assert learned == [False, True, True]


@pytest.mark.parametrize("name", CASES)
def test_one_program_does_what_calls_one_by_one_do(name):
    """The same iterations through `fused`, which `run` uses here, and through `driven`."""
    module, config, env_name = CASES[name]
    agent, env = parts(module, config, env_name)
    loop, fused = loop_of(module, config), straight(name).state
    mesh, buffer = sharding.mesh(1), off_policy.make_buffer(loop)
    collector = rollout.make(agent, env, loop.num_envs, loop.rollout_length, loop.collector)
    state = off_policy.init(agent, env, loop)
    first, last = loop.first_learning, loop.last_step // loop.rows
    for numbers, num_updates in ((range(first), 0), (range(first, last), loop.num_updates)):
        learn = iterations.learner(agent, buffer, num_updates)
        learn = sharding.data_parallel(learn, mesh, loop.parallel, batch_axes=1)
        phase = iterations.driven(collector, learn, mesh, lambda *_: None)
        state, _, _ = phase(state, numbers, loop.seed)
    driven = on_host(state)
    assert_close(fused, driven, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "stop"), [("dqn", 36), ("dqn", 144), ("sac", 72)])
def test_a_killed_and_resumed_run_is_a_straight_one_bit_for_bit(name, stop, tmp_path):
    module, config, env_name = CASES[name]
    loop = loop_of(module, config)
    agent, env = parts(module, config, env_name)
    with checkpoint.Manager(tmp_path) as checkpoints:
        start = off_policy.init(agent, env, loop)
        for step, state, _ in off_policy.run(agent, env, start, loop, 0):
            checkpoints.save(step, state)
            if step >= stop:
                break
    agent, env = parts(module, config, env_name)  # as a new process would
    with checkpoint.Manager(tmp_path) as checkpoints:
        first, state = checkpoints.restore_or(lambda: off_policy.init(agent, env, loop))
        assert stop <= first < loop.last_step
        *_, (step, state, _) = off_policy.run(agent, env, state, loop, first)
    assert step == loop.last_step
    assert_equal(straight(name).state, on_host(state))


def test_a_resumed_simulator_starts_new_episodes_behind_a_cut(tmp_path):
    loop = loop_of(dqn, DQN)
    agent, env = parts(name="CartPole-v1")
    state = off_policy.init(agent, env, loop)
    assert state.rollout is None
    run = off_policy.run(agent, env, state, loop, 0)
    with checkpoint.Manager(tmp_path) as checkpoints:
        step, state, _ = next(run)
        assert state.rollout is None
        checkpoints.save(step, state)
        checkpoints.wait()
        step, state = checkpoints.restore_or(lambda: off_policy.init(agent, env, loop))
    agent, env = parts(name="CartPole-v1")
    before = np.asarray(state.replay.ring.rows.valid)
    cut = 9  # rows of each environment so far, of 20 places
    assert state.replay.ring.cursor == cut
    step, state, _ = next(off_policy.run(agent, env, state, loop, step))
    assert step == 72
    rows = jax.device_get(state.replay.ring.rows)
    np.testing.assert_array_equal(rows.valid[: cut - 1], before[: cut - 1])
    assert not rows.valid[cut - 1].any()  # led nowhere that is here
    assert rows.valid[cut].all()  # first rows of episodes
    assert np.abs(rows.observation.features[cut]).max() <= 0.05  # as CartPole starts


@pytest.mark.parametrize("backend", sharding.Parallel)
@pytest.mark.parametrize("name", CASES)
def test_two_devices_learn_what_one_learns(name, backend):
    module, config, env_name = CASES[name]
    loop = loop_of(module, config, num_devices=2, parallel=backend)
    two = train(*parts(module, config, env_name), loop)
    one = straight(name)
    assert two.steps == one.steps
    # sums over rows in another order: equal but for rounding, which training magnifies
    assert_close(one.state.train.params, two.state.train.params, rtol=1e-2, atol=1e-3)
    assert one.state.train.updates == two.state.train.updates > 0
    assert one.metrics[-1].keys() - {"time/collect_and_learn_seconds"} <= two.metrics[-1].keys()


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_devices(before, after, tmp_path):
    agent, env = parts()
    loop = loop_of(dqn, DQN, num_devices=before)
    with checkpoint.Manager(tmp_path) as checkpoints:
        for step, state, _ in off_policy.run(
            agent, env, off_policy.init(agent, env, loop), loop, 0
        ):
            checkpoints.save(step, state)
            if step == 108:
                break
    agent, env = parts()
    loop = loop_of(dqn, DQN, num_devices=after)
    with checkpoint.Manager(tmp_path) as checkpoints:
        step, state = checkpoints.restore_or(lambda: off_policy.init(agent, env, loop))
        assert step == 108
        *_, (step, state, _) = off_policy.run(agent, env, state, loop, step)
    assert step == 240
    one, other = straight("dqn").state.train, on_host(state.train)
    assert_close(one.params, other.params, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", [rollout.Kind.HOST, rollout.Kind.ENVPOOL_XLA])
def test_simulators_are_learned_from_through_either_collector(kind):
    loop = loop_of(sac, SAC, collector=kind)
    trained = train(*parts(sac, SAC, "Pendulum-v1"), loop)
    assert trained.steps[-1] == loop.last_step
    assert trained.state.train.updates == 2 * (20 - loop.first_learning)
    timed = "time/learn_seconds" if kind is rollout.Kind.HOST else "time/collect_and_learn_seconds"
    assert trained.metrics[-1][timed] > 0


def test_a_row_without_weight_is_what_an_agent_gets_before_there_are_rows():
    """In a program that learns too early, samples are zeros of weight 0: nothing is read."""
    seen = []

    def update(state, batch, key):
        return state, {"loss/seen": jnp.sum(batch.weight), "loss/rows": jnp.sum(batch.reward**2)}

    agent, env = parts()
    loop = loop_of(dqn, DQN)
    for prioritized in (False, True):
        replay = dataclasses.replace(loop.replay, prioritized=prioritized, num_steps=3)
        buffer = off_policy.make_buffer(dataclasses.replace(loop, replay=replay))
        learn = iterations.learner(agent._replace(update=update), buffer, 2)
        collector = rollout.make(agent, env, 4, 3, rollout.Kind.AUTO)
        state = off_policy.init(agent, env, dataclasses.replace(loop, replay=replay))
        step = jax.jit(iterations.iteration(agent, collector, learn))
        for number in range(2):  # 3 rows of each have no three successors, 6 have
            state, outcome = step(state, jnp.int32(5), jnp.int32(number))
            seen.append(float(outcome.metrics["loss/seen"]))
    assert seen[0] == seen[2] == 0.0
    assert seen[1] == seen[3] == 8.0  # rows of a sample


def test_the_replay_is_written_in_place():
    """A copy of it in every iteration would be what training takes longest for."""
    config = dataclasses.replace(DQN, replay_capacity=200_000, total_steps=10**6)
    agent, env = parts(config=config)
    loop = loop_of(dqn, config)
    buffer = off_policy.make_buffer(loop)
    collector = rollout.make(agent, env, loop.num_envs, loop.rollout_length, loop.collector)
    step = off_policy.iteration(agent, collector, buffer, loop, learns=True)
    mesh = sharding.mesh(1)

    def many(state, bounds, seed):
        def body(number, state):
            return step(state, seed, number)[0]

        return jax.lax.fori_loop(bounds[0], bounds[1], body, state), None

    state = jax.eval_shape(lambda: off_policy.start(agent, env, loop, 5))
    spec = jax.sharding.PartitionSpec()
    program = jax.shard_map(many, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    args = (state, jax.ShapeDtypeStruct((2,), np.int32), jax.ShapeDtypeStruct((), np.int32))
    compiled = jax.jit(program, donate_argnums=0).lower(*args).compile()
    replay = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.replay))
    analysis: Any = compiled.memory_analysis()
    assert analysis.temp_size_in_bytes < replay / 10


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_devices": 2, "batch_size": 7}, "batch_size=7 cannot be split over 2 devices"),
        ({"capacity": 19}, r"replay of 19 rows is too small for rollouts of 12 .* 20 or more"),
        ({"learning_starts": 241}, "learning_starts=241 leaves nothing to learn"),
        # 10 steps need 11 rows of each of 4 environments: of 12 each the fourth has them
        (
            {"learning_starts": 0, "num_steps": 10, "capacity": 60, "total_steps": 36},
            "total_steps=36 are over before the first update, which needs 44 rows: make it 48 or",
        ),
        ({"iterations_per_call": -1}, "iterations_per_call must be 0 or more, not -1"),
        ({"collector": rollout.Kind.HOST}, "--collector=host needs a simulator on the host"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_starts(changes, sentence):
    names = {field.name for field in dataclasses.fields(Replay)}
    loop = loop_of(dqn, DQN, **{k: v for k, v in changes.items() if k not in names})
    inner = {k: v for k, v in changes.items() if k in names}
    loop = dataclasses.replace(loop, replay=dataclasses.replace(loop.replay, **inner))
    agent, env = parts()
    with pytest.raises(ValueError, match=sentence):
        off_policy.check(env, loop)
    with pytest.raises(ValueError, match=sentence):
        off_policy.run(agent, env, off_policy.init(agent, env, loop_of(dqn, DQN)), loop, 0)


def test_a_replay_that_does_not_fit_is_refused_with_the_bytes(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 5_000)
    agent, env = parts()
    loop = loop_of(dqn, DQN)
    row = 4 * 4 + 4 + 4 + 4 + 1 + 5  # observation, action, reward, discount, valid; priority
    sentence = f"takes {80 * row * 2:,} bytes"
    with pytest.raises(ValueError, match=sentence):
        off_policy.check(env, loop)
    with pytest.raises(ValueError, match=sentence):
        off_policy.init(agent, env, loop)
    monkeypatch.setattr(memory, "available", lambda device: 80 * row * 2)
    off_policy.check(env, loop)
    with pytest.raises(ValueError, match=f"takes {80 * (row + 4) * 2:,} bytes"):
        off_policy.init(agent._replace(stores=("value",)), env, loop)  # kept with every row


def test_actions_are_stored_as_the_environment_took_them():
    low, high = (-2.0,), (6.0,)
    spec = EnvSpec("box", (1,), "float32", Box(low, high))
    agent = sac.make(SAC, spec)
    assert isinstance(agent, Agent)
    state = agent.init(jax.random.key(0))
    observation = spec.example((1_000,))
    _, action, _ = agent.act(state.policy, (), observation, jax.random.key(1), False)
    assert -2 <= action.min() < -1.9
    assert 5.9 < action.max() <= 6
