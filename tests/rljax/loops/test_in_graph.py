"""Training in the graph: what the on-policy loop learns, for one run and for many at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from agents import ppo
from rljax import checkpoint, faults, sharding, sources
from rljax.loops import in_graph, on_policy
from rljax.types import Episodes

AGENT = ppo.Config(
    total_steps=8 * 16 * 6,
    num_envs=8,
    rollout_length=16,
    num_minibatches=2,
    num_epochs=2,
    hidden_sizes=(8,),
    normalize_observation=True,
    reward_scale=ppo.RewardScale.REWARD,
)
INNER = dataclasses.replace(ppo.loop(AGENT), seed=5, num_devices=1)
ONE = in_graph.Config(INNER, updates_per_call=4)
VARY = (("learning_rate", (1e-3, 1e-2)),)
FOUR = dataclasses.replace(ONE, num_seeds=2, vary=VARY)


def parts(name="rljax:cartpole"):
    env = sources.open(sources.EnvSource(name, AGENT.num_envs))
    return ppo.make(AGENT, env.spec), env


def calls(config, env=None, agent=AGENT):
    """Every call of a run from its start: step, state on the host, metrics."""
    env = env or parts()[1]
    agent = ppo.make(agent, env.spec)
    start = in_graph.init(agent, env, config)
    run = in_graph.run(agent, env, start, config, 0)
    return [(step, on_host(state), metrics) for step, state, metrics in run]


def on_host(state):
    """Typed keys of environments as numbers, which NumPy knows; a copy, as states are donated."""

    def data(x):
        typed = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(x) if typed else x)

    return jax.tree.map(data, state)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def assert_close(a, b):
    """Equal but for rounding, which training magnifies."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def one():
    return calls(ONE)


@pytest.fixture(scope="module")
def four():
    return calls(FOUR)


def test_one_run_learns_what_the_on_policy_loop_learns(one):
    agent, env = parts()
    start = on_policy.init(agent, env, INNER)
    *_, (step, state, metrics) = on_policy.run(agent, env, start, INNER, 0)
    assert one[-1][0] == step == AGENT.total_steps
    assert_close(one[-1][1], on_host(state))
    assert one[-1][2].keys() >= {"loss/policy", "time/update_seconds"}
    for name in ("loss/value", "episode/return_mean", "episode/count"):
        np.testing.assert_allclose(one[-1][2][name], metrics[name], rtol=1e-3)


def test_one_run_on_two_devices_learns_what_one_device_learns(one):
    inner = dataclasses.replace(INNER, num_devices=2)
    assert_close(calls(dataclasses.replace(ONE, inner=inner))[-1][1].train, one[-1][1].train)


def test_several_runs_learn_what_each_learns_alone(four):
    state = four[-1][1]
    for index, member in enumerate(in_graph.members(FOUR)):
        inner = dataclasses.replace(INNER, seed=member.seed)
        agent = dataclasses.replace(AGENT, **member.settings)
        alone = calls(dataclasses.replace(ONE, inner=inner), agent=agent)
        assert_close(in_graph.select(state, FOUR, index), alone[-1][1])


def test_runs_are_every_seed_with_every_combination_of_values():
    config = dataclasses.replace(FOUR, vary=(*VARY, ("entropy_cost", (0.0, 0.5))))
    assert in_graph.members(config) == (
        (5, {"learning_rate": 1e-3, "entropy_cost": 0.0}),
        (6, {"learning_rate": 1e-3, "entropy_cost": 0.0}),
        (5, {"learning_rate": 1e-3, "entropy_cost": 0.5}),
        (6, {"learning_rate": 1e-3, "entropy_cost": 0.5}),
        (5, {"learning_rate": 1e-2, "entropy_cost": 0.0}),
        (6, {"learning_rate": 1e-2, "entropy_cost": 0.0}),
        (5, {"learning_rate": 1e-2, "entropy_cost": 0.5}),
        (6, {"learning_rate": 1e-2, "entropy_cost": 0.5}),
    )


def test_runs_split_over_two_devices_learn_what_they_learn_on_one(four):
    inner = dataclasses.replace(INNER, num_devices=2)
    split = calls(dataclasses.replace(FOUR, inner=inner))
    assert_close(split[-1][1], four[-1][1])


@pytest.mark.parametrize("config", [ONE, FOUR])
def test_a_resumed_run_is_a_straight_one_bit_for_bit(config, tmp_path, request):
    straight = request.getfixturevalue("one" if config is ONE else "four")
    config = dataclasses.replace(config, cadences=(256,))
    agent, env = parts()
    with checkpoint.Manager(tmp_path) as checkpoints:
        start = in_graph.init(agent, env, config)
        for step, state, _ in in_graph.run(agent, env, start, config, 0):
            checkpoints.save(step, state)
            if step == 256:
                break
    agent, env = parts()  # as a new process would
    with checkpoint.Manager(tmp_path) as checkpoints:
        step, state = checkpoints.restore_or(lambda: in_graph.init(agent, env, config))
        assert step == 256
        *_, (step, state, _) = in_graph.run(agent, env, state, config, step)
    assert step == AGENT.total_steps
    assert_equal(on_host(state), straight[-1][1])


def test_either_loop_reads_the_others_checkpoint_of_one_run(tmp_path, one):
    agent, env = parts()
    with checkpoint.Manager(tmp_path) as checkpoints:
        step, state, _ = next(
            on_policy.run(agent, env, on_policy.init(agent, env, INNER), INNER, 0)
        )
        checkpoints.save(step, state)
        checkpoints.wait()
        step, state = checkpoints.restore_or(lambda: in_graph.init(agent, env, ONE))
    *_, (_, state, _) = in_graph.run(agent, env, state, ONE, step)
    assert_close(on_host(state), one[-1][1])


def test_how_many_updates_a_call_does_changes_nothing_learned(one):
    every = calls(dataclasses.replace(ONE, cadences=(128,)))
    assert [step for step, _, _ in every] == [128 * i for i in range(1, 7)]
    assert len(one) < 6  # the first call compiles and does one; later ones are of several
    assert_equal(every[-1][1], one[-1][1])
    alone = calls(dataclasses.replace(ONE, updates_per_call=1))
    assert [step for step, _, _ in alone] == [128 * i for i in range(1, 7)]
    assert_close(alone[-1][1], one[-1][1])


def test_calls_end_where_a_multiple_of_a_cadence_has_been_passed():
    config = dataclasses.replace(ONE, cadences=(300, 512))
    # rows of 128: 300 is passed by the end of update 3 (384), 512 by 4, 600 by 5 (640), 900 never
    reached = {update: in_graph._next_due(update, config) for update in range(6)}
    assert reached == {0: 3, 1: 3, 2: 3, 3: 4, 4: 5, 5: 8}
    steps = [step for step, _, _ in calls(config)]
    assert set(steps) >= {384, 512, 640, 768}


def test_metrics_of_several_runs_are_their_means_and_spread(four):
    metrics = four[-1][2]
    assert metrics["seed/diverged"] == 0
    low, high = metrics["seed/return_min"], metrics["seed/return_max"]
    assert low < metrics["seed/return_mean"] < high
    assert metrics["seed/return_mean"] == metrics["episode/return_mean"]
    measured = [{"loss/value": 1.0, "episode/return_mean": 10.0}, {"loss/value": 4.0}]
    merged = in_graph._merged(measured, np.array([False, False]))
    assert merged["loss/value"] == 2.5
    assert merged["episode/return_mean"] == merged["seed/return_min"] == 10.0  # of those with any


def test_runs_that_diverged_are_counted_and_left_out():
    measured = [
        {"loss/value": np.nan, "episode/return_mean": 500.0},
        {"loss/value": 2.0, "episode/return_mean": 10.0},
        {"loss/value": 4.0, "episode/return_mean": 30.0},
    ]
    merged = in_graph._merged(measured, np.array([True, False, False]))
    assert merged["seed/diverged"] == 1
    assert merged["loss/value"] == 3.0
    assert merged["seed/return_mean"] == merged["seed/return_iqm"] == 20.0
    assert merged["seed/return_max"] == 30.0
    assert np.isnan(in_graph._merged(measured, np.ones(3, bool))["loss/value"])  # the run must stop


def test_a_run_that_diverges_leaves_the_others_alone(four):
    vary = (("learning_rate", (1e-3, 1e38)),)  # the second one's parameters overflow
    mixed = calls(dataclasses.replace(FOUR, vary=vary))
    metrics = mixed[-1][2]
    assert metrics["seed/diverged"] == 2
    assert all(np.isfinite(value) for value in metrics.values())
    for index in (0, 1):
        mine = in_graph.select(mixed[-1][1], FOUR, index)
        assert_close(mine, in_graph.select(four[-1][1], FOUR, index))


def faulty(env, first_bad):
    """Rewards are NaN from that row of an episode on."""

    def step(state, action, key):
        state, timestep = env.step(state, action, key)
        bad = state.env.elapsed >= first_bad
        return state, timestep._replace(reward=jnp.where(bad, jnp.nan, timestep.reward))

    return env._replace(step=step)


def test_a_fault_of_the_environment_stops_a_single_run_and_is_named():
    env = faulty(parts()[1], 20)  # after 16 rows at the earliest: in the second update
    with pytest.raises(faults.RunFault, match="gave a reward that is not finite, at step") as error:
        calls(ONE, env)
    step = int(str(error.value).partition("at step ")[2].partition(" ")[0].replace(",", ""))
    assert 19 * 8 <= step < AGENT.total_steps


def test_a_fault_in_every_run_of_several_diverges_all_of_them():
    every = calls(FOUR, faulty(parts()[1], 3))
    assert every[0][2]["seed/diverged"] == 4


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_seeds": 0}, "must be at least 1"),
        ({"updates_per_call": 0}, "must be at least 1"),
        ({"vary": (("learning_rate", ()),)}, "must be at least 1"),
        ({"num_seeds": 3}, "3 runs cannot be split over 2 devices"),
        ({"inner": dataclasses.replace(INNER, seed=2**31 - 1), "num_seeds": 2}, "leaves no 2 seed"),
        (
            {"inner": dataclasses.replace(INNER, parallel=sharding.Parallel.PMAP)},
            "one process and --parallel=shard_map",
        ),
        ({"inner": dataclasses.replace(INNER, num_envs=7, num_devices=2)}, "num_envs=7 cannot be"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(change, sentence):
    all_devices = dataclasses.replace(ONE, inner=dataclasses.replace(INNER, num_devices=0))
    with pytest.raises(ValueError, match=sentence):
        in_graph.check(parts()[1], dataclasses.replace(all_devices, **change))


def test_a_simulator_on_the_host_and_unknown_names_are_refused():
    agent, host = parts("CartPole-v1")
    with pytest.raises(ValueError, match="CartPole-v1 runs on the host; only a JAX environment"):
        in_graph.check(host, FOUR)
    unknown = dataclasses.replace(ONE, vary=(("discount", (0.9, 0.99)),))
    with pytest.raises(ValueError, match=r"'discount'; .* learning_rate, clip_ratio, entropy_cost"):
        in_graph.check_vary(agent, unknown)
    with pytest.raises(ValueError, match="no run 4: choose 0 to 3"):
        in_graph.member(FOUR, 4)
    with pytest.raises(ValueError, match="no run 1: there is only run 0"):
        in_graph.select({}, ONE, 1)


def test_pixels_on_the_cpu_are_trained_one_update_a_call():
    assert in_graph._most_updates(parts()[1], ONE) == 4
    pixels = sources.open(sources.EnvSource("rljax:pixel_catch", 1))
    assert in_graph._most_updates(pixels, ONE) == 1


def test_a_summary_of_scores_is_over_the_runs():
    scores = [
        {"return_mean": mean, "return_min": mean - 1, "return_max": mean + 1, "episodes": 2}
        for mean in (1.0, 2.0, 9.0, 4.0)
    ]
    assert in_graph.summary(scores[:1]) == scores[0]
    combined = in_graph.summary(scores)
    assert combined["return_mean"] == 4.0
    assert combined["return_iqm"] == 3.0  # of 2 and 4
    assert (combined["return_min"], combined["return_max"]) == (0.0, 10.0)
    assert (combined["episodes"], combined["best_run"], combined["run_1_return"]) == (8, 2, 2.0)


def test_reports_hold_the_episodes_of_every_update_of_a_call():
    agent, env = parts()
    state = in_graph.place(in_graph.init(agent, env, ONE), ONE)
    advance = in_graph.program(agent, env, ONE)
    _, report = advance(state, np.int32(5), np.int32(0), np.int32(3))
    assert isinstance(report.episodes, Episodes)
    counts = np.asarray(report.episodes.count)
    assert counts.shape == (4,)  # room for updates_per_call
    assert counts[:3].sum() > 0
    assert counts[3] == 0
