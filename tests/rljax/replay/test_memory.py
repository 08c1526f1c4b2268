"""Whether a replay fits: bytes by hand, what the host says, and that nothing is allocated."""

import types

import jax
import numpy as np
import pytest

from agents import dqn
from rljax.replay import base, memory
from rljax.types import Box, Discrete, EnvSpec, Part

FLAGS = 4 + 4 + 1  # reward, discount, valid
VECTOR = EnvSpec("vector", (3,), "float32", Box((-1.0,) * 2, (1.0,) * 2))
PIXELS = EnvSpec(
    "pixels",
    (),
    "",
    Discrete(4),
    has_mask=True,
    named_parts=(Part("frame", (84, 84, 4), "uint8"), Part("vector", (5,), "float32")),
)


def test_bytes_of_a_row_by_hand():
    assert memory.row_bytes(memory.row_of(VECTOR)) == 3 * 4 + 2 * 4 + FLAGS
    frame, vector, mask, action = 84 * 84 * 4, 5 * 4, 4, 4
    assert memory.row_bytes(memory.row_of(PIXELS)) == frame + vector + mask + action + FLAGS


def test_the_row_of_an_agent_is_of_one_environment_whatever_their_number():
    spec = EnvSpec("vector", (3,), "float32", Discrete(2))
    agent = dqn.make(dqn.Config(hidden_sizes=(4,)), spec)
    row = base.row_of(agent, 7)
    assert row.reward.shape == (7,)
    assert row.extras == {}
    assert memory.row_bytes(row) == memory.row_bytes(memory.row_of(spec)) == 12 + 4 + FLAGS
    stored = base.row_of(agent._replace(stores=("log_prob",)), 7)
    assert memory.row_bytes(stored) == 12 + 4 + FLAGS + 4
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(row))


def test_what_fits_exactly_is_taken_and_a_byte_less_is_refused_with_the_numbers():
    memory.check(1_000, 29, 29_000)
    memory.check(10**12, 10**6, None)  # nobody says what there is
    with pytest.raises(ValueError, match=r"of 1,000 rows takes 29,000 bytes, 29 a row") as error:
        memory.check(1_000, 29, 28_999)
    assert "28,999 are available: make its capacity 999 rows or fewer" in str(error.value)
    memory.check(1_000, 29, 58_000, copies=2)
    with pytest.raises(ValueError, match=r"takes 58,000 bytes \(twice: a checkpoint is a copy\)"):
        memory.check(1_000, 29, 57_999, copies=2)


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host with 8 MiB left, within no container."""
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")
    (tmp_path / "meminfo").write_text("MemTotal:  16384 kB\nMemAvailable:    8192 kB\n")
    return tmp_path


def cpu():
    return jax.devices("cpu")[0]


def test_the_host_says_what_it_has_left(host):
    assert memory.available(cpu()) == 8 * 2**20
    (host / "meminfo").unlink()
    assert memory.available(cpu()) is None


def test_a_container_may_have_less(host):
    group = host / "cgroup"
    group.mkdir()
    (group / "memory.max").write_text("5000\n")
    (group / "memory.current").write_text("3000\n")
    (group / "memory.stat").write_text("anon 1500\ninactive_file 700\n")
    assert memory.available(cpu()) == 5000 - 3000 + 700  # files that were read can be read again
    (group / "memory.max").write_text("max\n")
    assert memory.available(cpu()) == 8 * 2**20


@pytest.mark.parametrize(
    ("stats", "free"),
    [({"bytes_limit": 100, "bytes_in_use": 30}, 70), ({"bytes_in_use": 3}, None), (None, None)],
)
def test_other_devices_are_asked_themselves(stats, free):
    device = types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    assert memory.available(device) == free


def test_the_example_of_a_spec_is_what_is_counted():
    row = memory.row_of(PIXELS)
    leaves = jax.tree.leaves(jax.tree.map(lambda x: np.dtype(x.dtype).name, row))
    assert sorted(leaves) == ["bool", "bool", "float32", "float32", "float32", "int32", "uint8"]
