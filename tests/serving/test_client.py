"""The client against a server process, and against none."""

import subprocess
import sys
import time

import numpy as np
import pytest

from serving.client import PolicyClient, Source
from serving.signatures import TensorInfo
from serving.status import Code, ServingError
from serving.versions import State, VersionStatus
from tests.serving.servers import ROOT, free_port, half_plus_two, policy, write_version

OBSERVATION = [0.1, -0.2, 0.3, 0.4]
MASK = [True, False, True]


@pytest.fixture(scope="module")
def server(tmp_path_factory, start_server):
    base = tmp_path_factory.mktemp("policy")
    write_version(base, 3, policy())
    return start_server(base, "policy")


@pytest.fixture
def client(server):
    with PolicyClient(server.address, "policy", timeout_ms=20_000) as client:
        yield client


def test_decides_as_the_model_does(client):
    decision = client.act(OBSERVATION, MASK)
    inputs = {
        "observation": np.array([OBSERVATION], np.float32),
        "action_mask": np.array([MASK]),
    }
    expected = policy().function(policy().leaves, inputs)
    assert decision.action.dtype == np.int32
    assert decision.action == expected["action"][0] != 1
    np.testing.assert_allclose(decision.log_prob, expected["log_prob"][0], rtol=1e-5)
    np.testing.assert_allclose(decision.value, expected["value"][0], rtol=1e-5)
    assert (decision.source, decision.version, decision.error) == (Source.MODEL, 3, None)
    assert not decision.extras


def test_takes_named_parts_and_doubles(client):
    parts = {"observation": np.array(OBSERVATION), "action_mask": np.array(MASK)}
    assert client.act(parts).action == client.act(np.array(OBSERVATION), MASK).action


def test_asks_for_a_version(client):
    assert client.act(OBSERVATION, MASK, version=3).version == 3
    with pytest.raises(ServingError, match=r"Specific\(policy, 2\)") as error:
        client.act(OBSERVATION, MASK, version=2)
    assert error.value.code is Code.NOT_FOUND


def test_refusals_name_the_shapes(client):
    with pytest.raises(ServingError, match=r"shape \[-1,4\], got float of shape \[1,3\]") as error:
        client.act(OBSERVATION[:3], MASK)
    assert error.value.code is Code.INVALID_ARGUMENT


def test_a_seed_is_an_input_of_its_own(client):
    with pytest.raises(ServingError, match=r"Sent extra: \{seed\}"):
        client.act(OBSERVATION, MASK, seed=1)


def test_metadata_and_status(client):
    signature = client.metadata()["serving_default"]
    assert signature.inputs["observation"] == TensorInfo(
        np.dtype("float32"), (-1, 4), "serving_default_observation:0"
    )
    assert set(signature.outputs) == {"action", "log_prob", "value"}
    assert client.status() == [VersionStatus(3, State.AVAILABLE)]


def test_the_safe_action_steps_in_when_the_model_refuses(server):
    with PolicyClient(server.address, "policy", timeout_ms=20_000, safe_action=2) as client:
        assert client.act(OBSERVATION, MASK).source is Source.MODEL
        decision = client.act(OBSERVATION, [False] * 3)
    assert (decision.action, decision.source) == (2, Source.SAFE_DEFAULT)
    assert "forbids every action" in decision.error
    assert decision.log_prob is decision.value is decision.version is None


def test_an_answer_without_action_is_none(tmp_path, start_server):
    write_version(tmp_path, 1, half_plus_two())
    server = start_server(tmp_path, "half")
    with (
        PolicyClient(server.address, "half", timeout_ms=20_000) as client,
        pytest.raises(ServingError, match="no output named action, but y"),
    ):
        client.act({"x": np.float32(1)})


def test_a_server_that_is_not_there_costs_the_deadline_at_most():
    address = f"localhost:{free_port()}"
    with PolicyClient(address, "policy", timeout_ms=500) as client:
        started = time.monotonic()
        with pytest.raises(ServingError) as error:
            client.act(OBSERVATION)
        assert time.monotonic() - started < 2
    assert error.value.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
    with PolicyClient(address, "policy", timeout_ms=500, safe_action=[0.5, 0.5]) as client:
        decision = client.act(OBSERVATION)
    assert decision.source is Source.SAFE_DEFAULT
    np.testing.assert_array_equal(decision.action, [0.5, 0.5])


def test_a_safe_default_is_the_callers_to_change():
    with PolicyClient("localhost:1", "m", timeout_ms=100, safe_action=[1.0]) as client:
        client.act(OBSERVATION).action[0] = 9.0
        assert client.act(OBSERVATION).action[0] == 1.0


def test_a_deadline_is_positive():
    with pytest.raises(ValueError, match="timeout_ms is 0"):
        PolicyClient("localhost:1", "m", timeout_ms=0)


def test_needs_neither_jax_nor_tensorflow():
    code = "import sys, serving.client; sys.exit(bool({'jax', 'tensorflow'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
