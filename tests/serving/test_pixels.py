"""Policies that see frames, and frames beside a vector, from training to an answered request."""

import json
import subprocess
import sys
import urllib.request
import warnings

import jax
import numpy as np
import pytest

from agents import ppo
from launch import trained
from rljax.config import UsageError
from rljax.types import Discrete, EnvSpec, Observation, Part
from serving import bundle, parity, runtime
from serving.bundle import Signature
from serving.client import PolicyClient
from serving.status import Code, ServingError

with warnings.catch_warnings():  # TensorFlow's own, while it is imported
    warnings.simplefilter("ignore")
    from serving import export

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorflow.*")
TRAIN = (
    "--env=rljax:pixel_catch",
    '--env_options={"scale": 1}',
    "--preset=none",
    "--config.num_envs=8",
    "--config.rollout_length=16",
    "--config.total_steps=256",
    "--config.num_epochs=1",
    "--eval_episodes=0",
)
PARTED = EnvSpec(
    "Parted-v0",
    (),
    "",
    Discrete(7),
    has_mask=True,
    named_parts=(Part("image", (7, 7, 3), "uint8"), Part("vector", (5,), "float32")),
)


def run(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"launch.{module}", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def bundled(spec, **golden):
    agent = ppo.make(ppo.Config(hidden_sizes=(8,)), spec)
    # the tests' type checks take the exporter's symbolic batch size for no int
    agent = agent._replace(initial_carry=lambda batch: ())
    provenance = bundle.Provenance("runs/toy", 7, "c0ffee", "ppo", spec.name, "abc")
    policy = agent.init(jax.random.key(0)).policy
    return bundle.make(agent, policy, ppo.Config(), provenance, **golden)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Of a policy that was trained a little, with its export beside it."""
    workdir = tmp_path_factory.mktemp("pixels")
    for module, *arguments in (
        ("train", f"--workdir={workdir}", *TRAIN),
        (
            *("export", f"--workdir={workdir}", f"--export_dir={workdir}/models"),
            "--max_batch_size=2",
        ),
    ):
        answer = run(module, *arguments)
        assert answer.returncode == 0, answer.stderr
    return workdir


@pytest.fixture(scope="module")
def server(workdir, start_server):
    return start_server(workdir / "models", "catch", rest=True)


@pytest.fixture(scope="module")
def frames():
    """Boards as the game draws them: a ball and a paddle."""
    boards = np.zeros((6, 10, 5, 1), np.uint8)
    for row, (ball, paddle) in enumerate([(0, 2), (4, 2), (2, 2), (1, 3), (3, 1), (0, 4)]):
        boards[row, row, ball] = boards[row, 9, paddle] = 255
    return boards


def answers(run, frames):
    """Greedy actions and values of the policy in the workdir."""
    act = jax.jit(lambda policy, x: run.agent.act(policy, (), x, jax.random.key(0), True))
    _, action, extras = act(run.policy, Observation(frames))
    return np.asarray(action), np.asarray(extras["value"])


def test_frames_over_grpc_get_the_agents_actions(workdir, server, frames):
    actions, values = answers(trained.load(workdir), frames)
    with PolicyClient(server.address, "catch", timeout_ms=20_000) as client:
        info = client.metadata()["serving_default"].inputs["observation"]
        assert (info.dtype, info.shape) == (np.uint8, (-1, 10, 5, 1))
        decisions = [client.act(frame) for frame in frames]
    assert [int(decision.action) for decision in decisions] == actions.tolist()
    served = [decision.value for decision in decisions]
    np.testing.assert_allclose(served, values, rtol=1e-4, atol=1e-5)
    assert np.ptp(values) > 1e-3  # what is shown matters


def test_frames_over_rest_get_the_agents_actions(workdir, server, frames):
    actions, values = answers(trained.load(workdir), frames)
    body = json.dumps({"instances": frames.tolist()}).encode()
    with urllib.request.urlopen(f"{server.rest_url}/v1/models/catch:predict", body) as response:
        predictions = json.load(response)["predictions"]
    assert [row["action"] for row in predictions] == actions.tolist()
    served = [row["value"] for row in predictions]
    np.testing.assert_allclose(served, values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda frame: frame.astype(np.float32) / 255, "expected uint8 .*got float"),
        (lambda frame: frame[..., 0], r"uint8 of shape \[-1,10,5,1\], got .*\[1,10,5\]"),
        (lambda frame: frame.transpose(2, 0, 1), r"got uint8 of shape \[1,1,10,5\]"),
    ],
)
def test_other_frames_are_refused(server, frames, wrong, message):
    with (
        PolicyClient(server.address, "catch", timeout_ms=20_000) as client,
        pytest.raises(ServingError, match=message) as caught,
    ):
        client.act(wrong(frames[0]))
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def parted():
    return bundled(PARTED)


def test_convolutions_have_no_plain_operations(parted, tmp_path):
    with pytest.raises(UsageError, match=r"tf_ops cannot express .*; export with --format=jax2tf"):
        export.export(parted, tmp_path, format=export.Format.TF_OPS)
    assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def version(parted, tmp_path_factory):
    """An export that TensorFlow, in a process of its own, has answered the golden inputs with."""
    result = export.export(parted, tmp_path_factory.mktemp("parted"), max_batch_size=2)
    assert result.parity_max_abs_diff <= parity.TOLERANCE * bundle.LARGE
    return result.path


def test_every_part_is_an_input_by_its_name(parted, version):
    inputs = runtime.load(version).signatures["sample"].inputs
    assert {name: (str(info.dtype), info.shape) for name, info in inputs.items()} == {
        "action_mask": ("bool", (-1, 7)),
        "image": ("uint8", (-1, 7, 7, 3)),
        "seed": ("int32", (-1,)),
        "vector": ("float32", (-1, 5)),
    }
    golden = parted.golden
    assert len(golden["sample/input/image"]) == len(golden["sample/input/vector"]) == 16 + 3
    for value in (0, 255):
        assert (golden["sample/input/image"] == value).all(axis=(1, 2, 3)).any()
    for value in (0, bundle.LARGE, -bundle.LARGE):
        assert (golden["sample/input/vector"] == value).all(axis=1).any()


def test_named_parts_over_grpc_get_the_agents_actions(parted, version, start_server):
    server = start_server(version.parent, "parted")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 11, (5, 7, 7, 3)).astype(np.uint8)
    vector = rng.standard_normal((5, 5)).astype(np.float32)
    mask = np.arange(35).reshape(5, 7) % 3 != 0
    observation = Observation({"image": image, "vector": vector}, mask)
    act = jax.jit(lambda policy, x: parted.agent.act(policy, (), x, jax.random.key(0), True))
    _, actions, extras = act(parted.policy, observation)
    with PolicyClient(server.address, "parted", timeout_ms=20_000) as client:
        decisions = [
            client.act({"image": image[i], "vector": vector[i]}, mask[i]) for i in range(5)
        ]
        with pytest.raises(ServingError, match=r"Missing but required: \{vector\}"):
            client.act({"image": image[0]}, mask[0])
    assert [int(decision.action) for decision in decisions] == actions.tolist()
    served = [decision.value for decision in decisions]
    np.testing.assert_allclose(served, extras["value"], rtol=1e-4, atol=1e-5)


def test_a_draw_of_named_parts_depends_on_its_row_and_seed_only(parted):
    function = jax.jit(bundle.policy_function(parted.agent, Signature.SAMPLE))
    names = bundle.input_specs(PARTED, Signature.SAMPLE)
    inputs = {name: parted.golden[f"sample/input/{name}"][:4] for name in names}
    whole = function(parted.policy, inputs)
    backwards = function(parted.policy, {name: x[::-1] for name, x in inputs.items()})
    np.testing.assert_array_equal(backwards["action"][::-1], whole["action"])
    np.testing.assert_allclose(backwards["value"][::-1], whole["value"], rtol=1e-5, atol=1e-6)


def test_given_parts_are_golden():
    observation = PARTED.example((2,))
    given = {"image": np.full((2, 7, 7, 3), 3, np.uint8), "vector": np.ones((2, 5), np.float32)}
    made = bundled(PARTED, golden_observations=observation._replace(features=given))
    for name, array in given.items():
        np.testing.assert_array_equal(made.golden[f"sample/input/{name}"][:2], array)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((2, 5), np.float32), "golden observations should be dicts of image, vector"),
        ({"image": np.zeros((2, 7, 7, 3), np.uint8)}, "should be dicts of image, vector"),
        (
            {"image": np.zeros((2, 7, 7, 3)), "vector": np.zeros((2, 5), np.float32)},
            r"are float64 \[2, 7, 7, 3\]; Parted-v0 has uint8 \[N, 7, 7, 3\]",
        ),
    ],
)
def test_golden_observations_of_other_parts_are_refused(features, message):
    with pytest.raises(UsageError, match=message):
        bundled(PARTED, golden_observations=Observation(features))


@pytest.mark.parametrize("name", ["seed", "action_mask"])
def test_a_part_named_as_another_input_is_refused(name):
    spec = EnvSpec("A", (), "", Discrete(2), named_parts=(Part(name, (7, 7, 3), "uint8"),))
    with pytest.raises(UsageError, match=f"A has a part '{name}', which is an input of its own"):
        bundled(spec)
