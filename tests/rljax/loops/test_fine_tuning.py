"""From offline to online: what batches are made of, the guard, resume, devices, refusals."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import checkpoint, sharding, sources
from rljax.agent import AXIS, Agent
from rljax.loops import fine_tuning, iterations, off_policy
from rljax.offline import dataset as datasets
from rljax.offline.outlook import RETURN_TO_GO
from rljax.offline.rewards import Change
from rljax.replay import memory, mixed, ring
from rljax.types import Box, EnvSpec, Episodes, Observation

MARK = 100.0  # in the dataset's observations, where no pole goes
ONLINE = off_policy.Config(
    total_steps=4 * 8 * 30,
    num_envs=4,
    rollout_length=8,
    num_updates=2,
    learning_starts=0,
    replay=off_policy.Replay(capacity=200, batch_size=8, discount=0.9),
    seed=3,
    num_devices=1,
    iterations_per_call=4,
)
CONFIG = fine_tuning.Config(ONLINE, dataset_fraction=0.25)


class TrainState(NamedTuple):
    seen: Any  # sums of what came
    updates: Any

    @property
    def policy(self):
        return self.seen


def agent_of(spec: EnvSpec, *stores: str) -> Agent:
    """Acts at random, and learns nothing; adds up its samples by the order of the updates."""

    def init(key):
        del key
        return TrainState(jnp.zeros(3), jnp.int32(0))

    def act(policy, carry, observation, key, greedy):
        return carry, jax.random.randint(key, observation.features.shape[:1], 0, 2), {}

    def update(state, batch, key):
        from_dataset = batch.observation.features[:, 0] == MARK
        known = jnp.isfinite(batch.extras.get(RETURN_TO_GO, batch.reward))
        columns = (batch.observation.features[:, 1], batch.reward, batch.discount)
        found = [*map(jnp.mean, columns), jnp.mean(from_dataset), jnp.mean(known)]
        *sums, share, known = jax.lax.pmean(jnp.stack(found), AXIS)
        seen = 0.5 * state.seen + jnp.stack(sums) * (1 + jax.random.uniform(key))
        metrics = {"loss/share": share, "loss/known": known}
        return TrainState(seen, state.updates + 1), metrics

    return Agent(spec, init, lambda batch: (), act, update, stores)


def source(name="rljax:cartpole") -> fine_tuning.Source:
    env = sources.open(sources.EnvSource(name, 4, seed=3))
    features = np.zeros((7, 4), np.float32)
    features[:, 0], features[:, 1] = MARK, np.arange(7)
    action, reward = np.zeros(6, np.int32), np.ones(6, np.float32)
    episode = datasets.Episode(Observation(features), action, reward, True)
    return fine_tuning.Source(env, datasets.make(env.spec, [episode, episode]))


def parts(*stores, name="rljax:cartpole"):
    found = source(name)
    return agent_of(found.spec, *stores), found


def train(config, state=None, first=0, stores=()):
    agent, found = parts(*stores)
    state = fine_tuning.init(agent, found, config) if state is None else state
    run = fine_tuning.run(agent, found, state, config, first)
    return [(step, on_host(after), metrics) for step, after, metrics in run]


def on_host(state):
    def data(x):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return jax.device_get(jax.tree.map(data, state))


@functools.cache
def straight():
    return train(CONFIG, stores=(RETURN_TO_GO,))


def test_it_learns_from_the_first_rollout_on_with_a_share_of_the_dataset():
    steps, states, metrics = zip(*straight(), strict=True)
    assert steps == (*range(128, 960, 128), 960)
    assert [state.train.updates for state in states] == [2 * step // 32 for step in steps]
    assert all(m["loss/share"] == 0.25 for m in metrics)
    assert metrics[-1]["replay/size"] == 200
    assert metrics[-1]["episode/count"] > 10


def test_before_there_is_anything_else_all_rows_are_the_datasets():
    online = dataclasses.replace(ONLINE, rollout_length=1, total_steps=12, iterations_per_call=1)
    config = dataclasses.replace(CONFIG, online=online)
    assert [float(m["loss/share"]) for _, _, m in train(config)] == [1.0, 0.25, 0.25]


def test_collected_rows_get_their_returns_to_go_and_the_datasets_have_them():
    _, state, metrics = straight()[-1]
    assert 0.25 < metrics["loss/known"] < 1
    rows = state.replay.rows
    known = np.isfinite(rows.extras[RETURN_TO_GO])
    assert known[rows.valid].mean() > 0.3
    # a pole that falls earns 1 a step: (1 - γ^m) / (1 - γ) for m steps left
    left = np.log1p(-0.1 * rows.extras[RETURN_TO_GO][known]) / np.log(0.9)
    np.testing.assert_allclose(left, np.round(left), atol=1e-2)
    assert left.max() > 10


def test_rewards_are_changed_and_returns_of_episodes_are_not():
    config = dataclasses.replace(CONFIG, change=Change(2.0, -5.0))  # 1 a step: -3
    _, plain, plain_metrics = straight()[-1]
    _, state, metrics = train(config, stores=(RETURN_TO_GO,))[-1]
    rows, valid = state.replay.rows, plain.replay.rows.valid
    np.testing.assert_array_equal(rows.reward, np.where(valid, -3.0, 0.0))
    assert metrics["episode/return_mean"] == plain_metrics["episode/return_mean"]
    for_one = plain.replay.rows.extras[RETURN_TO_GO]
    known = np.isfinite(for_one) & valid
    np.testing.assert_allclose(rows.extras[RETURN_TO_GO][known], -3 * for_one[known], rtol=1e-5)
    # Of a batch both kinds have it: Σ over draws of the same order, of rewards that are all 1.
    np.testing.assert_allclose(state.train.seen[1], -3 * plain.train.seen[1], rtol=1e-5)
    np.testing.assert_array_equal(state.train.seen[0], plain.train.seen[0])


def test_the_state_holds_no_dataset():
    agent, found = parts(RETURN_TO_GO)
    before = jax.eval_shape(lambda: fine_tuning.init(agent, found, CONFIG))
    after = straight()[-1][1]
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert not (after.replay.rows.observation.features[..., 0] == MARK).any()


def test_a_killed_and_resumed_run_is_a_straight_one_bit_for_bit(tmp_path):
    config = dataclasses.replace(CONFIG, return_floor=5.0, floor_episodes=4)
    agent, found = parts(RETURN_TO_GO)
    with checkpoint.Manager(tmp_path) as checkpoints:
        start = fine_tuning.init(agent, found, config)
        for step, state, _ in fine_tuning.run(agent, found, start, config, 0):
            checkpoints.save(step, state)
            if step >= 384:
                break
    agent, found = parts(RETURN_TO_GO)  # as a new process would
    with checkpoint.Manager(tmp_path) as checkpoints:
        first, state = checkpoints.restore_or(lambda: fine_tuning.init(agent, found, config))
        assert first == 384
        *_, (step, state, _) = fine_tuning.run(agent, found, state, config, first)
    assert step == 960
    _, expected, _ = train(config, stores=(RETURN_TO_GO,))[-1]
    jax.tree.map(np.testing.assert_array_equal, expected, on_host(state))
    assert expected.recent.sum() > 0  # the guard goes on with what it had seen, too
    # and how often the floor is looked at changes nothing of what is learned
    one, other = (x._replace(recent=()) for x in (expected, straight()[-1][1]))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_it_ends_with_the_first_rollout_that_brings_the_mean_under_the_floor():
    config = dataclasses.replace(CONFIG, return_floor=30.0, floor_episodes=5)
    yielded = train(config)
    means = [metrics.get("guard/return_mean") for _, _, metrics in yielded]
    assert means[0] is None  # no five episodes within 8 rows
    assert all(mean is None or mean >= 30 for mean in means[:-1])
    assert means[-1] < 30
    step, state, _ = yielded[-1]
    assert step < 960
    assert fine_tuning.is_under_floor(state, config)
    assert fine_tuning.recent_return(state, 5) == pytest.approx(float(means[-1]))
    assert train(config, state._replace(rollout=None), step) == []  # nor does it go on


def test_above_the_floor_it_goes_on():
    config = dataclasses.replace(CONFIG, return_floor=5.0, floor_episodes=5)  # poles stand for 8
    yielded = train(config)
    assert [step for step, _, _ in yielded] == list(range(32, 961, 32))  # looked at each time
    assert yielded[-1][2]["guard/return_mean"] > 5
    assert not fine_tuning.is_under_floor(yielded[-1][1], config)


def test_the_guard_looks_at_the_last_rollouts_that_hold_as_many_episodes():
    config = dataclasses.replace(CONFIG, floor_episodes=3, return_floor=4.0)
    guard = fine_tuning._Guard(np.zeros((3, 2), np.float32), config)

    def mean(count, return_sum):
        guard.add(Episodes(np.int32(count), np.float32(return_sum), np.int32(count)))
        state = fine_tuning.State((), (), None, guard.recent)
        return fine_tuning.recent_return(state, 3), fine_tuning.is_under_floor(state, config)

    assert mean(1, 9.0) == (None, False)
    assert mean(1, 0.0) == (None, False)  # two episodes decide nothing
    assert mean(0, 0.0) == (None, False)
    assert mean(1, 3.0) == (4.0, False)  # (9 + 0 + 3) / 3: at the floor is not under it
    assert mean(1, 3.0) == (2.0, True)  # (0 + 3 + 3) / 3: the 9 is forgotten
    assert mean(2, 12.0) == (5.0, False)  # (3 + 12) / 3
    assert mean(7, 14.0) == (2.0, True)  # more than enough by themselves
    assert guard.recent[:-1].sum() == 0


def test_without_a_floor_nothing_ends_it():
    _, state, metrics = straight()[-1]
    assert "guard/return_mean" not in metrics
    assert not fine_tuning.is_under_floor(state, CONFIG)


def test_two_devices_learn_what_one_learns():
    online = dataclasses.replace(ONLINE, num_devices=2, total_steps=256)
    two = train(dataclasses.replace(CONFIG, online=online), stores=(RETURN_TO_GO,))
    one = dict((step, state) for step, state, _ in straight())
    step, state, metrics = two[-1]
    assert metrics["loss/share"] == 0.25
    np.testing.assert_allclose(state.train.seen, one[step].train.seen, rtol=1e-4)


def test_simulators_start_anew_behind_a_cut():
    agent, found = parts(RETURN_TO_GO, name="CartPole-v1")
    state = fine_tuning.init(agent, found, CONFIG)
    step, state, _ = next(fine_tuning.run(agent, found, state, CONFIG, 0))
    assert state.rollout is None
    kept = on_host(state)
    agent, found = parts(RETURN_TO_GO, name="CartPole-v1")
    step, state, _ = next(fine_tuning.run(agent, found, state, CONFIG, step))
    rows = on_host(state).replay.rows
    cut = kept.replay.cursor - 1
    assert not rows.valid[cut].any()
    running = kept.replay.rows.extras[RETURN_TO_GO][cut - 1]
    np.testing.assert_array_equal(rows.extras[RETURN_TO_GO][cut - 1], running)


def test_actions_are_kept_as_the_environment_takes_them():
    spec = EnvSpec("box", (1,), "float32", Box((-1.0, 0.0), (1.0, math.inf)))

    def act(policy, carry, observation, key, greedy):
        return carry, jnp.array([[-3.0, -3.0], [3.0, 3.0]]), {"log_prob": jnp.zeros(2)}

    agent = fine_tuning._collecting(agent_of(spec)._replace(act=act))
    _, action, extras = agent.act((), (), spec.example((2,)), jax.random.key(0), False)
    np.testing.assert_array_equal(action, [[-1, 0], [1, 3]])
    assert extras.keys() == {"log_prob", RETURN_TO_GO}


def test_the_replay_is_written_in_place_and_the_dataset_is_not_copied():
    replay = dataclasses.replace(ONLINE.replay, capacity=200_000)
    config = dataclasses.replace(CONFIG, online=dataclasses.replace(ONLINE, replay=replay))
    agent, found = parts(RETURN_TO_GO)
    agent = fine_tuning._collecting(agent)
    big = jax.tree.map(lambda x: np.repeat(x, 5_000, axis=0), found.dataset.rows)
    big = big._replace(extras={RETURN_TO_GO: big.reward})
    held = mixed.hold(big)
    buffer = mixed.make(fine_tuning._replay(agent, config, found.dataset), held, 8, 1, 0.9)
    learn = iterations.learner(agent, buffer, 2)
    collector = off_policy.rollout.in_graph(agent, found.env, 4, 8)
    step = iterations.iteration(agent, collector, learn)

    def many(state, seed):
        return jax.lax.fori_loop(0, seed, lambda i, state: step(state, seed, i)[0], state), None

    def start():
        state = off_policy.start(agent, found.env, config.online, 3)
        return state._replace(replay=mixed.State(state.replay, held))

    state, spec = jax.eval_shape(start), jax.P()
    program = jax.shard_map(
        many, mesh=sharding.mesh(1), in_specs=spec, out_specs=spec, check_vma=False
    )
    args = (state, jax.ShapeDtypeStruct((), np.int32))
    compiled = jax.jit(program, donate_argnums=0).lower(*args).compile()
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.replay))
    analysis: Any = compiled.memory_analysis()
    assert analysis.temp_size_in_bytes < size / 10


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dataset_fraction": 1.0}, "leave a row to what is collected"),
        ({"floor_episodes": 0}, "floor_episodes must be at least 1, not 0"),
        ({"total_steps": 31}, "a budget of 31 steps is less than one rollout, which takes 32"),
        ({"prioritized": True}, "has no priorities"),
        ({"capacity": 20}, "replay of 20 rows is too small"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, sentence):
    names = [{f.name for f in dataclasses.fields(x)} for x in (ONLINE.replay, ONLINE)]
    replay = {k: v for k, v in changes.items() if k in names[0]}
    online = {k: v for k, v in changes.items() if k in names[1]}
    rest = {k: v for k, v in changes.items() if k not in names[0] | names[1]}
    online["replay"] = dataclasses.replace(ONLINE.replay, **replay)
    config = dataclasses.replace(CONFIG, online=dataclasses.replace(ONLINE, **online), **rest)
    with pytest.raises(ValueError, match=sentence):
        fine_tuning.check(source(), config)
    with pytest.raises(ValueError, match=sentence):
        fine_tuning.run(*parts(), fine_tuning.State((), (), None, jnp.zeros((1, 2))), config, 0)


def test_a_first_rollout_without_successors_is_enough_as_the_dataset_is_there():
    """Off the policy alone it would be: nothing could be learned from 4 rows of 4 environments."""
    online = dataclasses.replace(ONLINE, rollout_length=1, total_steps=4)
    with pytest.raises(ValueError, match="total_steps=4 are over before the first update"):
        off_policy.check(source().env, online)
    fine_tuning.check(source(), dataclasses.replace(CONFIG, online=online))


def test_dataset_and_replay_must_fit_together(monkeypatch):
    """Of 14 rows and 40: each alone would fit."""
    agent, found = parts(RETURN_TO_GO)
    small = dataclasses.replace(ONLINE, replay=dataclasses.replace(ONLINE.replay, capacity=40))
    config = dataclasses.replace(CONFIG, online=small)
    row = 4 * 4 + 4 + 4 + 4 + 1  # observation, action, reward, discount, valid
    held = 14 * row + 12 * 4  # and the numbers of the steps
    needed = held + 2 * 40 * row
    monkeypatch.setattr(memory, "available", lambda device: needed)
    fine_tuning.check(found, config)
    with pytest.raises(ValueError, match=f"{needed + 14 * 4 + 2 * 40 * 4:,} in all"):
        fine_tuning.init(agent, found, config)  # with the returns to go of both
    monkeypatch.setattr(memory, "available", lambda device: needed - 1)
    told = (
        f"the dataset takes {held:,} bytes and a replay of 40 rows beside it {2 * 40 * row:,} "
        rf"\(twice: a checkpoint is a copy\), {needed:,} in all, and {needed - 1:,} are available: "
        "make its capacity 39 rows or fewer, or mix a smaller dataset"
    )
    with pytest.raises(ValueError, match=told):
        fine_tuning.check(found, config)
    monkeypatch.setattr(memory, "available", lambda device: held)
    with pytest.raises(ValueError, match="are available: mix a smaller dataset"):
        fine_tuning.check(found, config)


def test_a_dataset_in_memory_is_copied_once_to_the_device():
    rows = source().dataset.rows
    full = ring.full(rows)
    pairs = zip(jax.tree.leaves(full.rows), jax.tree.leaves(rows), strict=True)
    assert all(isinstance(x, np.ndarray) and np.shares_memory(x, y) for x, y in pairs)
    held = mixed.hold(rows)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(held))
    size = sum(x.nbytes for x in jax.tree.leaves((held.rows.rows, held.steps)))
    assert size == mixed.held_bytes(rows, ())
    jax.tree.map(lambda x: x.delete(), held)
    np.testing.assert_array_equal(rows.reward[:6], 1)  # what was donated is not the dataset


def test_what_only_a_dataset_tells_cannot_be_learned_from():
    agent, found = parts("next_action", RETURN_TO_GO)
    state = fine_tuning.init(agent_of(found.spec), found, CONFIG)
    with pytest.raises(ValueError, match=r"\['next_action'\], which rows that are collected"):
        fine_tuning.run(agent, found, state, CONFIG, 0)
