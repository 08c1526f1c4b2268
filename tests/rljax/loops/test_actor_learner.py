"""The actor–learner loop: who acts by which policy; equal numbers whatever the timing."""

import dataclasses
import random
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import ppo
from rljax import checkpoint, rollout, sharding, sources
from rljax.actors.threads import ThreadFleet, Threads
from rljax.agent import AXIS, Agent
from rljax.loops import actor_learner, on_policy

AGENT = ppo.Config(
    total_steps=8 * 16 * 5,
    num_envs=8,
    rollout_length=16,
    num_minibatches=2,
    num_epochs=1,
    hidden_sizes=(8,),
    normalize_observation=True,
    reward_scale=ppo.RewardScale.REWARD,
)
INNER = dataclasses.replace(ppo.loop(AGENT), seed=5, num_devices=1, collector=rollout.Kind.HOST)
IN_GRAPH = dataclasses.replace(INNER, collector=rollout.Kind.AUTO)
LOOP = actor_learner.Config(INNER, Threads(), num_actors=2, staleness=1, timeout_seconds=120.0)
GRAPH_LOOP = dataclasses.replace(LOOP, inner=IN_GRAPH)


class Dawdling:
    """A pool that now and then sleeps before a step."""

    def __init__(self, env, seed):
        self._env, self._random = env, random.Random(seed)
        self.spec, self.num_envs, self.xla = env.spec, env.num_envs, env.xla
        self.reset, self.close = env.reset, env.close

    def step(self, action):
        if self._random.random() < 0.2:
            time.sleep(self._random.random() * 0.01)
        return self._env.step(action)


def pools(count, name="CartPole-v1"):
    return sources.open_pools(sources.EnvSource(name, AGENT.num_envs, seed=40), count)


def updates(loop=LOOP, name="CartPole-v1", wrap=lambda env, i: env):
    """All that a run yields, its states copied before they are donated."""
    opened = pools(loop.num_actors, name)
    opened = opened._replace(envs=tuple(wrap(env, i) for i, env in enumerate(opened.envs)))
    agent = ppo.make(AGENT, opened.spec)
    start = actor_learner.init(agent, opened, loop)
    run = actor_learner.run(agent, opened, start, loop, 0)
    return [(step, on_host(state), metrics) for step, state, metrics in run]


def on_host(state):
    """Typed keys of in-graph environments as numbers, which NumPy knows."""

    def data(x):
        typed = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(x) if typed else x)

    return jax.tree.map(data, state)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def spying_agent(spec) -> Agent:
    """Its policy is the number of updates behind it, which every row and `update` write down."""

    def act(policy, carry, observation, key, greedy):
        rows = observation.features.shape[0]
        number = jnp.full(rows, policy[0])
        drawn = jax.random.bits(key, (rows,), "uint16").astype(jnp.float32)
        return carry, jnp.zeros(rows, jnp.int32), {"version": number, "drawn": drawn}

    def update(state, batch, key):
        versions = batch.transitions.extras["version"]
        metrics = {f"policy/version_{stat}": f(versions) for stat, f in STATS.items()}
        metrics["policy/learner_version"] = state.policy[0]
        seen = batch.transitions.observation.features[:2, :, 2]
        metrics["policy/angles"] = jax.lax.all_gather(seen, AXIS, axis=1, tiled=True)
        drawn = batch.transitions.extras["drawn"]
        metrics["policy/drawn"] = jax.lax.all_gather(drawn, AXIS, axis=1, tiled=True)
        return Counting((state.policy[0] + 1,)), jax.lax.pmean(metrics, AXIS)

    init = lambda key: Counting((jnp.float32(0),))  # noqa: E731
    return Agent(spec, init, lambda n: (), act, update, stores=("version", "drawn"))


STATS = {"least": jnp.min, "most": jnp.max}


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass
class Counting:
    policy: tuple

    def tree_flatten(self):
        return self.policy, None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(tuple(leaves))


def spied(loop, first_step=0, older=()):
    opened = pools(loop.num_actors)
    agent = spying_agent(opened.spec)
    state = actor_learner.init(agent, opened, loop)
    if first_step:
        number = jnp.float32(first_step // loop.rows)
        state = state._replace(train=Counting((number,)), older=older)
    return list(actor_learner.run(agent, opened, state, loop, first_step))


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_rollout_u_acts_by_the_policy_of_u_minus_staleness_updates(staleness):
    lines = spied(dataclasses.replace(LOOP, staleness=staleness))
    assert len(lines) == 5
    for update, (step, state, metrics) in enumerate(lines):
        expected = max(0, update - staleness)
        assert metrics["policy/learner_version"] == update
        assert metrics["policy/version_least"] == metrics["policy/version_most"] == expected
        assert metrics["actor/staleness"] == update - expected
        assert step == (update + 1) * 128
        # what a resume needs: the policies of the next rollouts but the newest, which is in `train`
        versions = [float(number) for (number,) in getattr(state, "older", ())]
        assert versions == [max(0, update + 1 - staleness + i) for i in range(staleness)]


def test_a_resumed_run_acts_by_the_policies_that_were_kept():
    older = ((jnp.float32(1),),)
    (_, _, third), (_, _, fourth), _ = spied(LOOP, first_step=2 * 128, older=older)
    assert (third["policy/version_most"], third["policy/learner_version"]) == (1, 2)
    assert (fourth["policy/version_least"], fourth["policy/learner_version"]) == (2, 3)


def test_the_number_of_actors_changes_neither_environments_nor_draws():
    one = spied(dataclasses.replace(LOOP, num_actors=1))[2][2]
    four = spied(dataclasses.replace(LOOP, num_actors=4))[2][2]
    for name in ("policy/angles", "policy/drawn"):
        assert one[name].shape[1] == 8  # environments
        assert len(np.unique(np.asarray(one[name])[0])) == 8  # no two share anything
        np.testing.assert_array_equal(one[name], four[name])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("CartPole-v1", rollout.Kind.HOST),
        ("CartPole-v1", rollout.Kind.ENVPOOL_XLA),
        ("rljax:cartpole", rollout.Kind.IN_GRAPH),
    ],
)
@pytest.mark.parametrize("num_actors", [1, 4])
def test_without_staleness_it_is_the_on_policy_loop(num_actors, name, kind):
    inner = dataclasses.replace(INNER, collector=kind)
    env = sources.open(sources.EnvSource(name, AGENT.num_envs, seed=40))
    agent = ppo.make(AGENT, env.spec)
    start = on_policy.init(agent, env, inner)
    straight = [on_host(s) for _, s, _ in on_policy.run(agent, env, start, inner, 0)]
    loop = dataclasses.replace(LOOP, inner=inner, num_actors=num_actors, staleness=0)
    ours = [state for _, state, _ in updates(loop, name)]
    assert len(ours) == 5
    if num_actors == 1:
        assert_equal(straight, ours)
        return
    # a policy for 2 rows at once is compiled apart from one for 8: the last bits may differ
    assert jax.tree.structure(straight) == jax.tree.structure(ours)
    for a, b in zip(jax.tree.leaves(straight), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("staleness", [0, 1])
def test_timing_changes_nothing(staleness):
    loop = dataclasses.replace(LOOP, staleness=staleness)
    quick = updates(loop)
    slow = updates(loop, wrap=lambda env, i: Dawdling(env, seed=i))
    assert_equal([s.train for _, s, _ in quick], [s.train for _, s, _ in slow])
    returns = [[m.get("episode/return_mean") for _, _, m in lines] for lines in (quick, slow)]
    assert returns[0] == returns[1]
    assert returns[0][-1] is not None
    # and staleness does
    other = updates(dataclasses.replace(loop, staleness=1 - staleness))
    leaf = [jax.tree.leaves(s.train.params)[0] for s in (quick[-1][1], other[-1][1])]
    assert not np.array_equal(*leaf)


def test_a_killed_and_resumed_run_in_graph_is_a_straight_one_bit_for_bit(tmp_path):
    name = "rljax:cartpole"
    straight = updates(GRAPH_LOOP, name)[-1][1]

    opened = pools(2, name)
    agent = ppo.make(AGENT, opened.spec)
    with checkpoint.Manager(tmp_path) as checkpoints:
        start = actor_learner.init(agent, opened, GRAPH_LOOP)
        run = actor_learner.run(agent, opened, start, GRAPH_LOOP, 0)
        for step, state, _ in run:
            checkpoints.save(step, state)
            if step == 2 * 128:
                break
        run.close()

    opened = pools(2, name)  # as a new process would, on another device
    loop = dataclasses.replace(GRAPH_LOOP, actors=Threads((0, 1)), learner_devices=(1,))
    with checkpoint.Manager(tmp_path) as checkpoints:
        step, state = checkpoints.restore_or(lambda: actor_learner.init(agent, opened, loop))
        assert step == 2 * 128
        *_, (step, state, _) = actor_learner.run(agent, opened, state, loop, step)
    assert step == AGENT.total_steps
    assert_equal(straight, on_host(state))


def test_a_run_may_be_resumed_with_other_actors(tmp_path):
    env = sources.open(sources.EnvSource("rljax:cartpole", AGENT.num_envs))
    agent = ppo.make(AGENT, env.spec)
    start = on_policy.init(agent, env, IN_GRAPH)
    opened, loop = pools(4, "rljax:cartpole"), dataclasses.replace(GRAPH_LOOP, num_actors=4)
    loop = dataclasses.replace(loop, staleness=0)
    with checkpoint.Manager(tmp_path) as checkpoints:
        for step, state, _ in on_policy.run(agent, env, start, IN_GRAPH, 0):
            if step == 128:  # without actors
                checkpoints.save(step, state)
        straight = on_host(state)
        checkpoints.wait()
        first, state = checkpoints.restore_or(lambda: actor_learner.init(agent, opened, loop))
    assert first == 128
    *_, (step, state, _) = actor_learner.run(agent, opened, state, loop, first)
    assert step == AGENT.total_steps
    resumed = on_host(state)
    assert jax.tree.structure(straight) == jax.tree.structure(resumed)
    for a, b in zip(jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_a_pool_on_the_host_resumes_with_fresh_episodes(tmp_path):
    opened = pools(2)
    agent = ppo.make(AGENT, opened.spec)
    state = actor_learner.init(agent, opened, LOOP)
    assert state.rollout is None
    with checkpoint.Manager(tmp_path) as checkpoints:
        run = actor_learner.run(agent, opened, state, LOOP, 0)
        step, state, _ = next(run)
        checkpoints.save(step, state)
        checkpoints.wait()
        kept = on_host(state)
        run.close()
        step, state = checkpoints.restore_or(lambda: actor_learner.init(agent, opened, LOOP))
    assert_equal(kept, on_host(state))
    steps = [step for step, _, _ in actor_learner.run(agent, pools(2), state, LOOP, step)]
    assert steps == [256, 384, 512, 640]


@pytest.mark.parametrize("backend", sharding.Parallel)
def test_two_learner_devices_learn_what_one_learns(backend):
    inner = dataclasses.replace(INNER, parallel=backend, num_devices=0)
    both = dataclasses.replace(LOOP, inner=inner, actors=Threads((0, 1)))
    two, one = updates(both)[-1][1].train, updates(LOOP)[-1][1].train
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)  # rounding, magnified by training


def test_actors_act_and_learners_learn_where_they_are_told(monkeypatch):
    loop = dataclasses.replace(GRAPH_LOOP, actors=Threads((1,)), learner_devices=(0,))
    opened = pools(2, "rljax:cartpole")
    agent = ppo.make(AGENT, opened.spec)
    acted = set()
    taken = ThreadFleet.gather

    def gather(fleet, number):
        rollouts = taken(fleet, number)
        acted.update(*(each.trajectory.transitions.action.devices() for each in rollouts))
        return rollouts

    monkeypatch.setattr(ThreadFleet, "gather", gather)
    _, state, _ = next(
        actor_learner.run(agent, opened, actor_learner.init(agent, opened, loop), loop, 0)
    )
    zero, one = jax.local_devices()
    assert jax.tree.leaves(state.train.params)[0].devices() == {zero}
    assert state.rollout.ended.devices() == {zero}  # where it is kept, not where it is stepped
    assert acted == {one}


def test_stages_are_timed_and_queues_are_told():
    for _, _, metrics in updates():
        stages = metrics["time/actor_env_seconds"] + metrics["time/actor_inference_seconds"]
        assert metrics["time/collect_seconds"] == pytest.approx(stages)
        assert 0 < metrics["time/actor_env_seconds"] < metrics["time/collect_seconds"]
        for stage in ("transfer", "learn", "queue_wait_learner", "queue_wait_actor"):
            assert metrics[f"time/{stage}_seconds"] > 0
        assert metrics["actor/restarts"] == 0
    # where a rollout is one program, nobody can say
    assert "time/actor_env_seconds" not in updates(GRAPH_LOOP, "rljax:cartpole")[0][2]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"actors": Threads((0, 2))}, "--actor_devices=0,2 names device 2, but this process has 2"),
        ({"actors": Threads((-1,))}, "--actor_devices=-1 names device -1"),
        ({"actors": Threads((1, 1))}, "--actor_devices=1,1 names a device twice"),
        ({"learner_devices": (0, 0)}, "--learner_devices=0,0 names a device twice"),
        ({"learner_devices": (5,)}, r"--learner_devices=5 names device 5.*choose from 0 to 1"),
        ({"staleness": -1}, "--staleness=-1 is negative"),
        ({"timeout_seconds": 0.0}, "--actor_timeout=0 must be positive"),
        ({"inner": dataclasses.replace(INNER, num_envs=7, num_devices=2)}, "num_envs=7 cannot be"),
        (
            {"inner": dataclasses.replace(INNER, collector=rollout.Kind.IN_GRAPH)},
            "--collector=in_graph needs a JAX environment",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_a_thread_starts(changes, sentence):
    opened = pools(2)
    agent = ppo.make(AGENT, opened.spec)
    state = actor_learner.init(agent, opened, LOOP)
    before = threading.active_count()
    with pytest.raises(ValueError, match=sentence):
        actor_learner.run(agent, opened, state, dataclasses.replace(LOOP, **changes), 0)
    assert threading.active_count() == before


def test_more_devices_than_actors_are_refused():
    opened = pools(1)
    loop = dataclasses.replace(LOOP, num_actors=1, actors=Threads((0, 1)))
    with pytest.raises(ValueError, match=r"names 2 devices for 1 actor\(s\)"):
        actor_learner.check(opened, loop)
