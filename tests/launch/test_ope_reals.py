"""`--ope` with real actions: densities, kernels and clipped draws, where the truth is known."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import evaluate, ope, propensities, trained
from launch.trained import Trained
from rljax import distributions
from rljax.agent import Agent
from rljax.nn import policies
from rljax.offline import dataset, writers
from rljax.ope import densities
from rljax.types import Box, EnvSpec, Observation

SPEC = EnvSpec("doses", (1,), "float32", Box((-5.0,), (5.0,)))
OPTIONS = ope.Options(updates=300)
WIDTH = 0.6  # of the policy


def policy_of(spec=SPEC, squash=False, mean=0.5):
    """Acts by N(mean + x / 2, 0.6), whatever else it sees."""

    def act(policy, carry, observation, key, greedy):
        middle = 0.5 * observation.features[:, :1] + policy
        base = distributions.Normal(middle, jnp.full(middle.shape, jnp.log(WIDTH)))
        chosen = base
        if squash:
            ends = (jnp.full(middle.shape, x[0]) for x in (spec.action.low, spec.action.high))
            chosen = distributions.TanhNormal(base, *ends)
        action, said = policies.decide(chosen, key, greedy=greedy)
        return carry, action, said

    agent = Agent(spec, lambda key: 0, lambda batch: (), act, lambda *args: args)
    config = types.SimpleNamespace(discount=0.5)
    source = types.SimpleNamespace(name="")
    experiment = types.SimpleNamespace(config=config, source=source, dataset="")
    return Trained(experiment, agent, mean, 7)


def doses(count=4000, steps=1, seed=0):
    """Draws from N(0, 1); each pays x - (a - ½)², and the next x does not depend on it."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        x = rng.uniform(-1, 1, (steps + 1, 1)).astype(np.float32)
        action = rng.normal(size=(steps, 1)).astype(np.float32)
        log_prob = -0.5 * action[:, 0] ** 2 - 0.5 * np.log(2 * np.pi)
        pay = x[:-1, 0] - (action[:, 0] - 0.5) ** 2
        extras = {"log_prob": log_prob}
        made.append(dataset.Episode(Observation(x), action, pay, True, extras))
    return dataset.make(SPEC, made)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("reals") / "doses.parquet"
    writers.write_parquet(doses(), path)
    return path


def near(row, truth):
    if row["low"] is None:  # a model that has hardly learned has a part in it
        return abs(row["value"] - truth) < 0.15
    half = (row["high"] - row["low"]) / 2
    return abs(row["value"] - truth) < 2 * half  # four standard errors


def ask(log, workdir, monkeypatch, *flags):
    monkeypatch.setattr(trained, "load", lambda *arguments: policy_of())
    evaluate.FLAGS.unparse_flags()
    evaluate.FLAGS["ope_bandwidth"].unparse()
    told = [f"--workdir={workdir}", f"--dataset={log}", "--ope", "--ope_updates=300"]
    evaluate.FLAGS(["evaluate", *told, *(flags or ["--nogreedy"])])
    assert evaluate.main([]) == 0
    return json.loads((workdir / "ope.json").read_text())


def test_a_policy_with_a_density_is_weighed_by_ratios_of_densities(log, tmp_path, monkeypatch):
    told = ask(log, tmp_path, monkeypatch)
    truth = -(0.25 / 3 + WIDTH**2)  # E[(x/2)²] + σ²; what the log earned is -1.25
    assert (told["kind"], told["propensities"], told["kernel"]) == ("bandit", "logged", None)
    assert told["notes"] == []
    for row in told["estimates"]:
        assert near(row, truth), row
    assert told["verdict"]["trust"] != "none", told["verdict"]
    assert told["shift"]["actions"]["p_value"] < 0.05


def test_a_greedy_policy_is_weighed_by_a_kernel_and_never_trusted_highly(
    log, tmp_path, monkeypatch, capsys
):
    told = ask(log, tmp_path, monkeypatch, "--greedy", "--ope_bandwidth=0.2")
    width = told["kernel"]["bandwidth"][0]
    assert width == pytest.approx(0.2, rel=0.05)  # of a deviation of 1
    truth = -(0.25 / 3) - width**2  # with the kernel's own variance
    by_name = {row["name"]: row for row in told["estimates"]}
    for name in ("ipw", "snipw"):
        assert near(by_name[name], truth), by_name[name]
    assert told["kernel"]["chosen_by"] == "--ope_bandwidth"
    assert told["verdict"]["trust"] == "low"
    assert any("kernel" in note for note in told["notes"])
    assert "kernel: Gaussian, bandwidth 0.2" in capsys.readouterr().out


def test_slope_chooses_a_bandwidth_whose_bias_is_within_the_noise():
    data, run = doses(), policy_of()
    values = None

    def judge(log_ratio):
        found = ope._judged(data, log_ratio, values, 1.0)
        judged.append(found)
        return found

    judged = []
    ratios = propensities.of_reals(
        run.agent, run.policy, data, deviations=None, judge=judge, seed=0
    )
    assert ratios.kernel["chosen_by"] == "SLOPE"
    assert len(judged) == 5
    assert judged[0][1] > 1.5 * judged[2][1]  # narrow kernels leave few events
    width = ratios.kernel["bandwidth"][0]
    value, half = ope._judged(data, ratios.log_ratio, values, 1.0)
    assert width**2 < 6 * half  # its bias is h²
    assert abs(value + 0.25 / 3) < 6 * half


def test_episodes_of_real_actions(monkeypatch):
    """Two decisions; the second is worth half. Ratios of densities, per decision."""
    monkeypatch.setattr(ope, "_opened", lambda run, path: doses(3000, steps=2, seed=1))
    report, told = ope.report(policy_of(), "doses", OPTIONS._replace(dice_updates=400))
    truth = -1.5 * (0.25 / 3 + WIDTH**2)
    assert (told["kind"], told["discount"]) == ("episodes", 0.5)
    names = [row.name for row in report.estimates]
    assert names == ["is", "wis", "pdis", "wpdis", "dm", "dr", "wdr", "magic", "dice"]
    assert told["dice"]["mass"] == pytest.approx(1, abs=0.15)
    for row in report.estimates:
        if row.name not in ("dm", "magic"):  # whose model has hardly learned
            assert near(row._asdict(), truth), row
    assert report.verdict.trust != "none", report.verdict
    assert report.effective_size > 500


def test_of_single_decisions_and_without_a_discount_there_are_no_visits():
    options = ope.Options(dice_updates=1)
    single, longer = doses(5), doses(5, steps=2)
    for data, discount, why in ((single, 0.5, "nothing follows"), (longer, 1.0, "below 1")):
        log_ratio = np.zeros(len(data.rows.reward))
        logged = ope._trajectories(data, log_ratio, None, discount)
        found, (note,) = ope._visits(data, log_ratio, logged, options)
        assert found is None
        assert note.startswith("no dice: ")
        assert why in note
    assert ope._visits(single, log_ratio, logged, ope.Options()) == (None, [])


def test_a_squashed_policy_is_known_by_its_own_draws():
    spec = EnvSpec("doses", (1,), "float32", Box((-2.0,), (2.0,)))
    run = policy_of(spec, squash=True)
    rng = np.random.default_rng(0)
    seen = Observation(rng.uniform(-1, 1, (100, 1)).astype(np.float32))
    said = propensities.decisions(run.agent, run.policy, seen, greedy=False, seed=0)
    action = rng.uniform(-1.5, 1.5, (100, 1))
    found = propensities._density(run.agent, said, action, False)
    base = distributions.Normal(0.5 * seen.features + 0.5, jnp.full((100, 1), jnp.log(WIDTH)))
    ends = (jnp.full((100, 1), x) for x in (-2.0, 2.0))
    expected = distributions.TanhNormal(base, *ends).log_prob(jnp.asarray(action, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="does not tell the density"):
        propensities._density(run.agent, said | {"scale": 2 * said["scale"]}, action, False)


def test_clipped_draws_are_weighed_by_masses_of_a_clone():
    """Logged densities are of the draws before: with them the weights would not average 1."""
    spec = EnvSpec("doses", (1,), "float32", Box((-1.0,), (1.0,)))
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(2000, 1)).astype(np.float32)
    log_prob = -0.5 * drawn[:, 0] ** 2 - 0.5 * np.log(2 * np.pi)
    episodes = [
        dataset.Episode(
            Observation(np.zeros((2, 1), np.float32)), a[None], a, True, {"log_prob": p}
        )
        for a, p in zip(np.clip(drawn, -1, 1), log_prob[:, None], strict=True)
    ]
    data, run = dataset.make(spec, episodes), policy_of(spec, mean=0.3)
    ratios = propensities.of_reals(run.agent, run.policy, data, deviations=None, judge=None, seed=0)
    assert ratios.propensities == "estimated"
    assert "estimated" in ratios.caveats[0]
    steps = data.rows.valid
    weight = np.exp(ratios.log_ratio[steps])
    assert weight.mean() == pytest.approx(1.0, abs=0.15)
    action = data.rows.action[steps].astype(np.float64)
    low, high = np.array([-1.0]), np.array([1.0])
    full = (np.full(action.shape, x) for x in (0.3, WIDTH))
    masses = densities.clipped_normal(action, *full, low, high) - log_prob
    assert abs(np.exp(masses).mean() - 1) > 0.15  # with what was logged of the draws


@pytest.mark.parametrize("deviations", [None, 0.5])
def test_a_dimension_without_spread_has_no_kernel(deviations):
    """0.1 in float32 has a deviation of rounding in float64, which is no bandwidth."""
    spec = EnvSpec("doses", (1,), "float32", Box((-1.0,), (1.0,)))
    rows = [0.1] * 3
    episode = dataset.Episode(
        Observation(np.zeros((4, 1), np.float32)),
        np.array(rows, np.float32)[:, None],
        np.zeros(3, np.float32),
        True,
        {"log_prob": np.zeros(3, np.float32)},
    )
    run = policy_of(spec)
    with pytest.raises(ValueError, match=r"all logged actions are 0.1 in dimension 0, so that"):
        propensities.of_reals(
            run.agent,
            run.policy,
            dataset.make(spec, [episode] * 3),
            deviations=deviations,
            judge=lambda log_ratio: (0.0, 0.1),
            seed=0,
        )


def test_pixels_and_real_actions_have_no_model_but_weights():
    spec = EnvSpec("frames", (2, 2, 1), "uint8", Box((-5.0,), (5.0,)))
    seen = np.zeros((2, 2, 2, 1), np.uint8)
    episode = dataset.Episode(
        Observation(seen), np.zeros((1, 1), np.float32), np.ones(1, np.float32), True
    )
    target = ope.direct.Target(None, lambda observation, key: jax.random.normal(key, (1, 1)))
    values, notes = ope._values(dataset.make(spec, [episode]), target, 1.0, OPTIONS)
    assert values is None
    assert "plain vectors only" in notes[0]
