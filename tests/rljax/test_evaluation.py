import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rljax import evaluation
from rljax.agent import Agent
from rljax.envs.base import JaxEnv, TimeStep
from rljax.types import Discrete, EnvSpec, Observation

SPEC = EnvSpec("counting", (1,), "float32", Discrete(5))


class CountingEnvs:
    """Environment i plays episodes of i + 1 steps; each step's reward is its action.

    Observations are the number of steps taken. Autoreset on the step after an end, as the others.
    """

    spec = SPEC

    def __init__(self, num_envs):
        self.num_envs = num_envs
        self.actions = []

    def reset(self):
        self.steps = np.zeros(self.num_envs, int)
        self.ended = np.zeros(self.num_envs, bool)
        return self._observation()

    def step(self, action):
        self.actions.append(action)
        self.steps = np.where(self.ended, 0, self.steps + 1)
        reward = np.where(self.ended, 0.0, action).astype(np.float32)
        self.ended = ~self.ended & (self.steps == np.arange(self.num_envs) + 1)
        even = np.arange(self.num_envs) % 2 == 0  # some end by the rules, some by a limit
        return TimeStep(self._observation(), reward, self.ended & even, self.ended & ~even)

    def xla(self):
        return None

    def close(self):
        pass

    def _observation(self):
        return Observation(self.steps[:, None].astype(np.float32))


def agent(act, initial_carry=lambda batch: ()):
    return Agent(SPEC, init=None, initial_carry=initial_carry, act=act, update=None)


def ones(policy, carry, observation, key, greedy):
    return carry, jnp.ones(observation.features.shape[0], jnp.int32), {}


def play(act_or_agent, env, episodes, *, greedy=True, num_envs=0, seed=0):
    player = act_or_agent if isinstance(act_or_agent, Agent) else agent(act_or_agent)
    play_with = evaluation.player(player, env, num_envs, greedy=greedy)
    return play_with((), episodes, jax.random.key(seed))


def test_every_environment_plays_an_equal_share():
    score = play(ones, CountingEnvs(3), 6)
    # two episodes in each; the first to finish would have been [1, 1, 2, 1, 2, 3] or shorter
    assert score.lengths.tolist() == [1, 1, 2, 2, 3, 3]
    # reward 1 a step: the autoreset's row adds neither to the return nor to the length
    assert score.returns.tolist() == [1, 1, 2, 2, 3, 3]


def test_the_surplus_of_the_last_environments_is_dropped():
    assert play(ones, CountingEnvs(3), 5).lengths.tolist() == [1, 1, 2, 2, 3]
    assert play(ones, CountingEnvs(3), 1).lengths.tolist() == [1]


def test_one_player_scores_one_policy_after_another_from_fresh_starts():
    def act(policy, carry, observation, key, greedy):
        return carry, jnp.full(observation.features.shape[0], policy), {}

    play_with = evaluation.player(agent(act), CountingEnvs(2), 0, greedy=True)
    # environment 0 is left in the middle of nothing, 1 behind a surplus episode: reset all the same
    for policy in (1, 3):
        score = play_with(policy, 3, jax.random.key(0))
        assert score.returns.tolist() == [policy, policy, 2 * policy]


def test_summary_by_hand():
    summary = evaluation.Score(np.array([1.0, 2.0, 6.0]), np.array([10, 20, 60])).summary()
    assert summary == pytest.approx(
        {
            "return_mean": 3.0,
            "return_std": (14 / 3) ** 0.5,  # over episodes, population
            "return_min": 1.0,
            "return_max": 6.0,
            "length_mean": 30.0,
            "episodes": 3,
        }
    )


@pytest.mark.parametrize(("greedy", "expected"), [(True, 3.0), (False, 2.0)])
def test_greedy_reaches_the_agent(greedy, expected):
    def act(policy, carry, observation, key, greedy):
        return carry, jnp.full(observation.features.shape[0], 3 if greedy else 2), {}

    assert play(act, CountingEnvs(1), 1, greedy=greedy).returns.tolist() == [expected]


def test_sampling_draws_anew_in_every_row_and_again_the_same_with_the_same_key():
    def act(policy, carry, observation, key, greedy):
        return carry, jax.random.randint(key, observation.features.shape[:1], 0, 5), {}

    first, again, other = (CountingEnvs(3) for _ in range(3))
    score = play(act, first, 30, greedy=False)
    actions = np.stack(first.actions)
    assert len({tuple(row) for row in actions}) > len(actions) // 2
    np.testing.assert_array_equal(play(act, again, 30, greedy=False).returns, score.returns)
    play(act, other, 30, greedy=False, seed=1)
    assert (np.stack(other.actions) != actions).any()


def test_the_carry_starts_anew_with_every_episode():
    def act(policy, carry, observation, key, greedy):
        return carry + 1, carry, {}  # the reward is the carry: 0, 1, 2 within each episode

    recurrent = agent(act, lambda batch: jnp.zeros(batch, jnp.int32))
    score = play(recurrent, CountingEnvs(3), 9)
    assert score.returns.tolist() == [0, 0, 0, 1, 1, 1, 3, 3, 3]  # 0; 0+1; 0+1+2


def in_graph(length):
    """The same as a `JaxEnv`, all episodes of `length` steps; state (steps taken, ended)."""

    def observe(steps):
        return Observation(jnp.asarray(steps, jnp.float32)[None])

    def reset(key):
        return (jnp.int32(0), jnp.bool_(False)), observe(jnp.int32(0))

    def step(state, action, key):
        steps, was_ended = state
        steps = jnp.where(was_ended, 0, steps + 1)
        ended = ~was_ended & (steps == length)
        reward = jnp.where(was_ended, 0.0, action.astype(jnp.float32))
        return (steps, ended), TimeStep(observe(steps), reward, ended, jnp.bool_(False))

    return JaxEnv(SPEC, reset, step)


def test_in_graph_environments_are_played_alike():
    score = play(ones, in_graph(4), 5, num_envs=2)
    assert score.lengths.tolist() == [4] * 5
    assert score.returns.tolist() == [4.0] * 5


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3.0], 3.0),
        ([1.0, 5.0], 3.0),  # half of each
        ([9.0, 0.0, 3.0], 3.5),  # of [0, 3, 9]: (¼·0 + 3 + ¼·9) / 1.5
        ([8.0, 1.0, 2.0, 100.0], 5.0),  # the middle two
        ([10.0, 0.0, 1.0, 100.0, 2.0], 4.1),  # of [0, 1, 2, 10, 100]: (¾·1 + 2 + ¾·10) / 2.5
    ],
)
def test_iqm_by_hand(scores, expected):
    np.testing.assert_allclose(evaluation.iqm(scores), expected)


@pytest.mark.parametrize("n", [4, 8, 40])
def test_iqm_is_the_trimmed_mean_where_quarters_are_whole(n):
    scores = np.random.default_rng(n).normal(size=n)
    np.testing.assert_allclose(evaluation.iqm(scores), stats.trim_mean(scores, 0.25))


def test_iqm_is_between_mean_and_median_against_outliers():
    scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1000.0])
    np.testing.assert_allclose(evaluation.iqm(scores), 4.5)  # of 3, 4, 5, 6
    assert evaluation.iqm(scores) < scores.mean()


def test_iqm_follows_shift_and_scale():
    scores = np.random.default_rng(0).normal(size=7)
    np.testing.assert_allclose(evaluation.iqm(3 * scores + 2), 3 * evaluation.iqm(scores) + 2)


def test_bootstrap_interval_of_the_mean_is_the_normal_one():
    scores = np.random.default_rng(0).normal(10.0, 2.0, size=200)
    low, high = evaluation.bootstrap_interval(scores, np.mean)
    error = scores.std() / np.sqrt(200)
    np.testing.assert_allclose(
        [low, high], scores.mean() + 1.96 * error * np.array([-1, 1]), atol=0.15 * error
    )


def test_bootstrap_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        scores = rng.normal(size=30)
        low, high = evaluation.bootstrap_interval(
            scores, np.mean, confidence=0.8, resamples=200, seed=seed
        )
        covered += low <= 0 <= high
    # 0.8·200 = 160 ± 3·√(200·0.8·0.2) = 17; percentile intervals of 30 scores are a little short
    assert 138 <= covered <= 177


def test_bootstrap_interval_is_wider_when_it_must_be_surer_and_repeats_itself():
    scores = np.random.default_rng(0).normal(size=20)
    narrow = evaluation.bootstrap_interval(scores, confidence=0.5)
    wide = evaluation.bootstrap_interval(scores, confidence=0.99)
    assert wide[0] < narrow[0] < evaluation.iqm(scores) < narrow[1] < wide[1]
    assert evaluation.bootstrap_interval(scores, confidence=0.5) == narrow


def test_bootstrap_interval_of_equal_scores_is_a_point():
    assert evaluation.bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
