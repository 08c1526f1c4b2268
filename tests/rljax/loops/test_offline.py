"""Learning from a dataset: what is drawn, that streaming and devices change nothing, resume."""

import dataclasses
import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import normalizers, sharding
from rljax.agent import AXIS, Agent
from rljax.loops import offline
from rljax.offline import dataset, outlook
from rljax.types import Box, Discrete, EnvSpec, Observation

SPEC = EnvSpec("numbers", (2,), "float32", Discrete(3))
CONFIG = offline.Config(
    total_updates=20, batch_size=8, discount=0.5, num_devices=1, updates_per_call=7
)


class TrainState(NamedTuple):
    observation: normalizers.Moments
    seen: Any  # sums of what came

    @property
    def policy(self):
        return self.observation


def agent_of(spec=SPEC) -> Agent:
    """Learns nothing; adds up its samples with weights that depend on the order of the updates."""

    def init(key):
        del key
        return TrainState(normalizers.init_observation(spec), jnp.zeros(6))

    def update(state, batch, key):
        where = batch.observation.features[:, 0]
        led = batch.next_observation.features[:, 0]
        columns = (where, batch.reward, batch.discount, led, led - where, batch.weight)
        mean = jax.lax.pmean(jnp.stack([jnp.mean(column) for column in columns]), AXIS)
        noise = jax.random.uniform(key)
        state = state._replace(seen=0.5 * state.seen + mean * (1 + noise))
        return state, {"value/mean": mean[0], "value/discount": mean[2]}

    return Agent(spec, init, lambda batch: (), lambda *args: args, update)


def episode(first, steps, terminated):
    """Observation (n, 0) of rows first, first + 1, ...; the reward of row n is n."""
    rows = np.arange(first, first + steps + 1, dtype=np.float32)
    features = np.stack([rows, np.zeros_like(rows)], axis=1)
    action = np.zeros(steps, np.int32)
    return dataset.Episode(Observation(features), action, rows[:-1], terminated)


@pytest.fixture(scope="module")
def data():
    return dataset.make(SPEC, [episode(0, 3, True), episode(10, 1, False), episode(20, 5, False)])


def trained(data, state=None, first=0, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    agent = agent_of()
    state = offline.init(agent, data, config) if state is None else state
    yielded = list(offline.run(agent, data, state, config, first))
    return [step for step, _, _ in yielded], yielded[-1][1], [m for _, _, m in yielded]


@pytest.mark.parametrize("streamed", [False, True])
def test_an_agent_finds_what_it_stores_in_its_batches(data, streamed):
    class Seen(NamedTuple):
        index: Any
        extras: Any

    def update(state, batch, key):
        del state, key
        return Seen(batch.index, batch.extras), {}

    def init(key):
        del key
        return Seen(jnp.zeros(8, jnp.int32), {"return_to_go": jnp.zeros(8)})

    stores = ("return_to_go",)
    agent = Agent(SPEC, init, lambda batch: (), lambda *args: args, update, stores)
    config = dataclasses.replace(CONFIG, total_updates=3, streamed=streamed)
    *_, (_, state, _) = offline.run(agent, data, offline.init(agent, data, config), config, 0)
    index = np.asarray(state.train.index)
    np.testing.assert_array_equal(
        state.train.extras["return_to_go"], outlook.returns_to_go(data, 0.5)[index]
    )
    agent = agent._replace(stores=("log_prob",))
    with pytest.raises(ValueError, match="has no column 'log_prob'"):
        offline.run(agent, data, state, config, 0)


def test_every_step_is_drawn_and_no_other_row(data):
    rows = offline.ring.full(data.rows)
    valid = jnp.asarray(np.flatnonzero(data.rows.valid))
    index = jnp.concatenate(
        [valid[offline.draw(len(valid), jnp.int32(0), jnp.int32(n), 64)[0]] for n in range(10)]
    )
    counts = np.bincount(index, minlength=len(data.rows.reward))
    np.testing.assert_array_equal(counts > 0, data.rows.valid)
    assert abs(counts[data.rows.valid] - 640 / 9).max() < 4 * np.sqrt(640 / 9)
    ring_take = offline.ring.take(rows, jnp.arange(3), jnp.ones(3), 1, 0.5)
    np.testing.assert_array_equal(ring_take.next_observation.features[:, 0], [1, 2, 3])
    np.testing.assert_array_equal(ring_take.discount, [0.5, 0.5, 0])  # the third terminated
    cut = offline.ring.take(rows, jnp.array([4]), jnp.ones(1), 3, 0.5)  # episode of one step
    assert cut.next_observation.features[0, 0] == 11
    assert (cut.reward[0], cut.discount[0]) == (10, 0.5)  # a time limit: bootstrapped from


def test_calls_end_where_something_is_due(data):
    assert trained(data)[0] == [7, 14, 20]
    assert trained(data, cadences=(5,))[0] == [5, 10, 15, 20]
    assert trained(data, cadences=(6, 9))[0] == [6, 9, 12, 18, 20]


@pytest.mark.parametrize(
    "changes",
    [
        {"updates_per_call": 20},
        {"cadences": (3,)},
        {"streamed": True},
        {"streamed": True, "updates_per_call": 3, "cadences": (4,)},
    ],
    ids=["one call", "many", "streamed", "streamed, many"],
)
@pytest.mark.parametrize("num_steps", [1, 3])
def test_how_rows_come_changes_nothing(data, changes, num_steps):
    _, straight, _ = trained(data, num_steps=num_steps)
    _, other, _ = trained(data, num_steps=num_steps, **changes)
    jax.tree.map(np.testing.assert_array_equal, straight, other)


def test_calls_read_no_more_than_they_learn_from_and_end_their_reader(data, monkeypatch):
    shapes, real = [], offline._read

    def read(rows, index, num_steps, columns):
        few = real(rows, index, num_steps, columns)
        shapes.append((index.shape, few.rows.reward.shape))
        return few

    monkeypatch.setattr(offline, "_read", read)
    before = threading.active_count()
    trained(data, streamed=True, cadences=(4, 10))
    assert set(shapes) == {((4, 8), (64, 1))}  # 4 × 8 rows, each with its successor
    assert len(shapes) == 6  # from 0, 4, 8, 10, 12 and 16 on: each once, and nothing behind
    deadline = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_call_takes_along_what_fits_into_memory(data, monkeypatch):
    # a row is 2 numbers, an action, a reward, a discount and a flag: 21 bytes; 4 × 8 of them
    monkeypatch.setattr(offline.memory, "available", lambda device: 8 * 3 * 21 * 4 * 8)
    mesh = sharding.mesh(1)
    assert outlook.row_bytes(data.rows, ()) == 21
    assert offline._streamable(21.0, CONFIG, mesh) == 3
    monkeypatch.setattr(offline.memory, "available", lambda device: 1)
    assert offline._streamable(21.0, CONFIG, mesh) == 1
    monkeypatch.setattr(offline.memory, "available", lambda device: None)
    assert offline._streamable(21.0, CONFIG, mesh) == 7


@pytest.mark.parametrize("streamed", [False, True])
def test_devices_share_a_batch(data, streamed):
    _, one, _ = trained(data)
    _, two, _ = trained(data, num_devices=2, streamed=streamed)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), one, sharding.local(two))


def test_a_resumed_run_is_the_straight_one(data):
    _, straight, _ = trained(data)
    _, half, _ = trained(data, total_updates=9)
    _, resumed, _ = trained(data, half, 9)
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)


def test_seeds_draw_other_rows(data):
    assert not np.array_equal(trained(data)[1].train.seen, trained(data, seed=1)[1].train.seen)


def test_metrics_are_means_over_the_updates_of_a_call(data):
    _, _, alone = trained(data, updates_per_call=1)
    _, _, together = trained(data, updates_per_call=20)
    for name in ("value/mean", "value/discount"):
        mean = np.mean([metrics[name] for metrics in alone])
        assert together[0][name] == pytest.approx(mean, rel=1e-5)
    assert together[0]["time/updates_per_second"] > 0


def test_statistics_are_those_of_the_steps_that_are_learned_from(data):
    found = offline.init(agent_of(), data, CONFIG).train.observation
    steps = np.array([0, 1, 2, 10, 20, 21, 22, 23, 24.0])
    assert (found.count, found.variance[1]) == (9, 1)  # 1 of what never varies
    assert found.mean[0] == pytest.approx(steps.mean())
    assert found.variance[0] == pytest.approx(steps.var())
    best = dataclasses.replace(CONFIG, top_fraction=1 / 3)
    assert offline.init(agent_of(), data, best).train.observation.mean[0] == 22
    assert 20 <= trained(data, top_fraction=1 / 3)[2][0]["value/mean"] <= 24


def test_streamed_the_best_episodes_and_next_actions_are_not_copied(monkeypatch):
    """What is drawn of a dataset on disk is read row by row, and is what comes from memory."""
    rng = np.random.default_rng(0)
    episodes = [episode(10 * n, int(rng.integers(1, 6)), bool(n % 2)) for n in range(20)]
    data = dataset.make(
        SPEC, [e._replace(action=rng.integers(3, size=len(e.reward))) for e in episodes]
    )

    def update(state, batch, key):
        del key
        known = batch.extras["knows_next_action"]
        led = known * (1 + batch.extras["next_action"])
        mean = jax.lax.pmean(jnp.stack([jnp.mean(led), jnp.mean(batch.reward)]), AXIS)
        return state._replace(seen=0.5 * state.seen + mean), {}

    def init(key):
        del key
        return TrainState(normalizers.init_observation(SPEC), jnp.zeros(2))

    stores = ("next_action", "knows_next_action")
    agent = Agent(SPEC, init, lambda batch: (), lambda *args: args, update, stores)

    def learned(**changes):
        config = dataclasses.replace(CONFIG, total_updates=5, **changes)
        *_, (_, state, _) = offline.run(agent, data, offline.init(agent, data, config), config, 0)
        return state

    share = {"top_fraction": 0.3}
    in_memory = learned(**share), learned()
    assert in_memory[0].train.seen[1] > 1.2 * in_memory[1].train.seen[1]

    def refuse(*arguments):
        raise AssertionError("a copy of the dataset")

    monkeypatch.setattr(dataset, "top", refuse)
    monkeypatch.setattr(dataset.Dataset, "select", refuse)
    whole, real = len(data.rows.reward), np.roll

    def roll(x, *arguments, **named):
        assert len(x) < whole, "a column of the whole dataset"
        return real(x, *arguments, **named)

    monkeypatch.setattr(outlook.np, "roll", roll)
    for state, changes in zip(in_memory, (share, {}), strict=True):
        small = {"batch_size": 8, "updates_per_call": 1, "streamed": True}
        jax.tree.map(np.testing.assert_array_equal, state, learned(**changes, **small))


def test_the_scale_of_rewards_makes_returns_span_1000(data):
    class Scaled(NamedTuple):
        observation: Any
        reward_scale: Any

    def init(key):
        del key
        return Scaled(normalizers.init_observation(SPEC), jnp.float32(1.0))

    agent = agent_of()._replace(init=init)
    state = offline.init(agent, data, CONFIG).train
    assert state.reward_scale == pytest.approx(1_000 / (110 - 3))  # 0+1+2, 10, 20+...+24
    assert state.observation.count == 9
    alike = dataset.make(SPEC, [episode(7, 1, True), episode(3, 2, False)], "alike.npz")
    with pytest.raises(ValueError, match=r"all 2 episodes of alike\.npz earn 7, .*leave it off"):
        offline.init(agent, alike, CONFIG)
    asked = dataclasses.replace(CONFIG, normalize_reward=True)
    offline.check(data, asked)
    with pytest.raises(ValueError, match="leave it off"):  # before anything is written
        offline.check(alike, asked)


@pytest.mark.parametrize("streamed", [False, True])
def test_rewards_are_changed_before_anything_is_learned_from_them(data, streamed):
    reward = np.where(data.rows.valid, 2 * data.rows.reward - 3, 0).astype(np.float32)
    already = dataclasses.replace(data, rows=data.rows._replace(reward=reward))
    sizes = {"num_steps": 3, "streamed": streamed}
    change = {"reward_multiplier": 2.0, "reward_bias": -3.0}
    wanted, found = trained(already, **sizes)[1], trained(data, **sizes, **change)[1]
    jax.tree.map(np.testing.assert_array_equal, wanted, found)
    assert not np.array_equal(found.train.seen, trained(data, **sizes)[1].train.seen)
    with pytest.raises(ValueError, match="finite and not 0"):
        offline.check(data, dataclasses.replace(CONFIG, reward_multiplier=0.0))


def test_the_scale_of_rewards_is_of_changed_ones(data):
    class Scaled(NamedTuple):
        reward_scale: Any

    agent = agent_of()._replace(init=lambda key: Scaled(jnp.float32(1.0)))
    changed = dataclasses.replace(CONFIG, reward_multiplier=2.0, reward_bias=-3.0)
    state = offline.init(agent, data, changed).train
    assert state.reward_scale == pytest.approx(1_000 / (205 - -3))  # 6 - 9, 20 - 3, 220 - 15


def test_a_loop_takes_what_an_agents_config_names():
    @dataclasses.dataclass(frozen=True)
    class Config:
        total_updates: int = 5
        batch_size: int = 2
        discount: float = 0.7
        reward_bias: float = -1.0
        another: str = "of the agent alone"

    expected = offline.Config(5, 2, 0.7, reward_bias=-1.0)
    assert offline.of(Config()) == expected


def test_where_nothing_is_seen_nothing_is_learned(data):
    blind = dataclasses.replace(data, spec=dataclasses.replace(SPEC, observation_shape=(0,)))
    with pytest.raises(ValueError, match="has observations without a number"):
        offline.check(blind, CONFIG)


def test_a_dimension_that_never_varies_leaves_nothing_to_choose(data):
    fixed = EnvSpec("fixed", (2,), "float32", Box((-1.0, 0.5), (1.0, 0.5)))
    with pytest.raises(ValueError, match=r"actions that are 0.5 in dimension 1, always, which"):
        offline.check(dataclasses.replace(data, spec=fixed), CONFIG)


def test_boxes_that_are_too_wide_and_lone_numbers_are_refused(data):
    wide = EnvSpec("wide", (2,), "float32", Box((-3e38,), (3e38,)))
    with pytest.raises(ValueError, match=r"actions from -3e\+38 to 3e\+38, which networks cannot"):
        offline.check(dataclasses.replace(data, spec=wide), CONFIG)
    lone = dataclasses.replace(data, spec=dataclasses.replace(SPEC, observation_shape=()))
    with pytest.raises(ValueError, match="observations that are lone numbers"):
        offline.check(lone, CONFIG)


def test_what_is_learned_is_the_last_state_and_finite(data):
    agent = agent_of()
    state = offline.learned(agent, data, offline.init(agent, data, CONFIG), CONFIG)
    np.testing.assert_array_equal(state.train.seen, trained(data)[1].train.seen)
    huge = dataclasses.replace(data, rows=data.rows._replace(reward=data.rows.reward + np.inf))
    bad = agent._replace(
        update=lambda state, batch, key: (state, {"loss/q": jnp.max(batch.reward)})
    )
    with pytest.raises(offline.DivergedError, match=r"loss/q is inf within \d+ updates"):
        offline.learned(bad, huge, offline.init(bad, huge, CONFIG), CONFIG)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 9, "num_devices": 2}, "choose a multiple of 2"),
        ({"parallel": sharding.Parallel.PMAP}, "--parallel=shard_map"),
        ({"total_updates": 0}, "must be at least 1"),
        ({"top_fraction": 0.0}, "must lie in"),
    ],
)
def test_what_does_not_fit_is_refused(data, changes, sentence):
    state = offline.init(agent_of(), data, CONFIG)
    with pytest.raises(ValueError, match=sentence):
        offline.run(agent_of(), data, state, dataclasses.replace(CONFIG, **changes), 0)
