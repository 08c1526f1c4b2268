import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.config import UsageError, from_json, to_json
from rljax.types import Box, Discrete, EnvSpec, Observation
from serving import bundle
from serving.bundle import Signature
from tests.serving import toy_policies as toys

SPECS = [toys.DISCRETE, toys.MULTI_DISCRETE, toys.BOX, toys.PIXELS]
KINDS = ["discrete", "multi-discrete", "box", "pixels"]
OBSERVATION = np.array([[0.1, -0.2, 0.3, 0.4], [1.0, 2.0, -1.0, 0.0]], np.float32)


def constant_agent(spec, action, **extras):
    """Always the same answer, whatever it sees."""

    def act(policy, carry, observation, key, greedy):
        batch = observation.features.shape[0]
        rows = {k: jnp.full((batch,), x) for k, x in extras.items()}
        return carry, jnp.broadcast_to(policy["action"], (batch, *action.shape)), rows

    return toys.agent(spec)._replace(act=act)


@pytest.mark.parametrize("spec", SPECS, ids=KINDS)
def test_outputs_are_the_action_and_every_extra(spec):
    made = toys.bundled(spec)
    outputs = {n.split("/")[2]: x for n, x in made.golden.items() if n.startswith("sample/output")}
    extras = {"value", "log_prob"} | ({"mean", "scale"} if isinstance(spec.action, Box) else set())
    assert set(outputs) == {"action"} | extras
    rows = 16 + (2 if spec.observation_dtype == "uint8" else 3)  # random ones, and the extremes
    assert outputs["action"].shape == (rows, *spec.action.shape)
    assert outputs["action"].dtype == spec.action.dtype
    assert outputs["value"].shape == (rows,)


def test_the_greedy_action_is_the_agents_own():
    spec, params = toys.DISCRETE, toys.policy(toys.DISCRETE)
    mask = np.array([[True, True, False], [False, True, True]])
    inputs = {"observation": OBSERVATION, "action_mask": mask}
    outputs = bundle.policy_function(toys.agent(spec), Signature.SERVING_DEFAULT)(params, inputs)
    torso, (weights, bias) = np.asarray(params["torso"]), map(np.asarray, params["head"])
    logits = np.tanh(OBSERVATION @ torso) @ weights + bias
    np.testing.assert_array_equal(outputs["action"], np.where(mask, logits, -np.inf).argmax(1))


def test_masked_actions_are_never_drawn():
    function = jax.jit(bundle.policy_function(toys.agent(toys.DISCRETE), Signature.SAMPLE))
    inputs = {
        "observation": np.zeros((1000, 4), np.float32),  # the logits are the bias: 0, 1, 2
        "action_mask": np.repeat([[True, False, True]], 1000, axis=0),
        "seed": np.arange(1000, dtype=np.int32),
    }
    actions = function(toys.policy(toys.DISCRETE), inputs)["action"]
    shares = np.bincount(actions, minlength=3) / 1000
    # 1 / (1 + e²) = 0.119; four standard deviations of 1000 draws are 0.041
    np.testing.assert_allclose(shares, [0.119, 0.0, 0.881], atol=0.041)
    assert shares[1] == 0


@pytest.mark.parametrize("spec", SPECS, ids=KINDS)
def test_a_draw_depends_on_its_row_and_seed_only(spec):
    made = toys.bundled(spec)
    function = jax.jit(bundle.policy_function(made.agent, Signature.SAMPLE))
    names = bundle.input_specs(spec, Signature.SAMPLE)
    inputs = {name: made.golden[f"sample/input/{name}"][:6] for name in names}
    whole = function(made.policy, inputs)
    backwards = function(made.policy, {name: x[::-1] for name, x in inputs.items()})
    alone = function(made.policy, {name: x[4:5] for name, x in inputs.items()})
    for name, x in whole.items():  # matrix products of other sizes may round differently
        np.testing.assert_allclose(backwards[name][::-1], x, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(alone[name], x[4:5], rtol=1e-5, atol=1e-6)


def test_another_seed_is_another_draw():
    function = bundle.policy_function(toys.agent(toys.BOX), Signature.SAMPLE)
    inputs = {"observation": np.zeros((3, 4), np.float32), "seed": np.int32([0, 1, 0])}
    means, actions = map(function(toys.policy(toys.BOX), inputs).get, ("mean", "action"))
    noise = (actions - means)[:, 1]  # of the unbounded component
    assert noise[0] == noise[2] != noise[1]


def test_a_box_action_is_clipped_but_its_log_prob_is_not():
    action = np.array([3.0, 3.0], np.float32)
    agent = constant_agent(toys.BOX, action, log_prob=-7.0)
    function = bundle.policy_function(agent, Signature.SERVING_DEFAULT)
    outputs = function({"action": action}, {"observation": OBSERVATION})
    np.testing.assert_array_equal(outputs["action"], [[0.5, 3.0]] * 2)  # bounds ±0.5 and ±∞
    np.testing.assert_array_equal(outputs["log_prob"], [-7.0] * 2)


def test_golden_inputs_hold_extremes_and_possible_masks():
    golden = toys.bundled(toys.MULTI_DISCRETE).golden
    features = golden["serving_default/input/observation"]
    for value in (0.0, bundle.LARGE, -bundle.LARGE):
        assert (features == value).all(axis=1).any()
    masks = golden["sample/input/action_mask"]
    assert masks[:, :2].any(axis=1).all()  # both components of (2, 3) always have a choice
    assert masks[:, 2:].any(axis=1).all()
    assert not masks.all()


def test_given_observations_are_golden():
    agent = toys.agent(toys.DISCRETE)
    masks = np.array([[True, False, False], [False, True, False]])
    made = bundle.make(
        agent,
        toys.policy(toys.DISCRETE),
        toys.Config(),
        bundle.Provenance("", 0, None, "toy", "Toy-v0", ""),
        golden_observations=Observation(OBSERVATION, masks),
    )
    np.testing.assert_array_equal(made.golden["sample/input/observation"][:2], OBSERVATION)
    np.testing.assert_array_equal(made.golden["serving_default/output/action"][:2], [0, 1])


@pytest.mark.parametrize("spec", [*SPECS, EnvSpec("A", (2,), "float32", Box((-math.inf,), (1.0,)))])
def test_specs_survive_json(spec):
    assert from_json(EnvSpec, to_json(spec)) == spec


def refused(spec=toys.DISCRETE, policy=None, **changes):
    agent = toys.agent(spec)._replace(**changes)
    provenance = bundle.Provenance("", 0, None, "toy", "Toy-v0", "")
    bundle.make(agent, toys.policy(spec) if policy is None else policy, toys.Config(), provenance)


def test_refuses_a_recurrent_policy():
    with pytest.raises(UsageError, match="only feed-forward policies"):
        refused(initial_carry=lambda batch: jnp.zeros((batch, 8)))


def test_refuses_nan():
    policy = toys.policy(toys.DISCRETE) | {"value": jnp.full((16, 1), jnp.nan)}
    with pytest.raises(UsageError, match="NaN on golden inputs: serving_default/output/value"):
        refused(policy=policy)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (jnp.zeros((16, 1), jnp.bfloat16), r"policy\['value'\] is bfloat16.*cast it to float32"),
        (jax.random.key(0), r"policy\['value'\] is a random key"),
    ],
)
def test_refuses_a_leaf_that_cannot_be_stored(leaf, message):
    with pytest.raises(UsageError, match=message):
        refused(policy=toys.policy(toys.DISCRETE) | {"value": leaf})


def test_refuses_golden_observations_of_another_shape():
    agent = toys.agent(toys.DISCRETE)
    observations = Observation(np.zeros((2, 5), np.float32))
    provenance = bundle.Provenance("", 0, None, "toy", "Toy-v0", "")
    with pytest.raises(UsageError, match=r"float32 \[2, 5\]; Toy-v0 has float32 \[N, 4\]"):
        bundle.make(agent, {}, None, provenance, golden_observations=observations)


def test_refuses_a_masked_box():
    spec = dataclasses.replace(toys.BOX, has_mask=True)
    with pytest.raises(UsageError, match="masks a box of actions"):
        bundle.input_specs(spec, Signature.SAMPLE)
    with pytest.raises(UsageError, match="masks a box of actions"):
        refused(spec)


def test_inputs_are_sorted_by_name():
    names = list(bundle.input_specs(toys.DISCRETE, Signature.SAMPLE))
    assert names == ["action_mask", "observation", "seed"]
    unmasked = dataclasses.replace(toys.DISCRETE, has_mask=False, action=Discrete(2))
    assert list(bundle.input_specs(unmasked, Signature.SERVING_DEFAULT)) == ["observation"]
