import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import checkpoint, config, sharding
from rljax.checkpoint import CheckpointError, Manager

# Orbax abandons its other reads when one fails, and they complain when they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

LOGGER = "rljax.checkpoint"
ROOT = pathlib.Path(__file__).resolve().parents[2]


class State(NamedTuple):
    params: dict
    optimizer: optax.OptState
    key: jax.Array
    target: dict | None
    updates: jax.Array


def make(fill=0.0, size=64):
    """A state of every kind of leaf, recognized by `fill`."""
    params = {"w": fill + jnp.arange(float(size)), "half": jnp.full(3, fill, jnp.bfloat16)}
    optimizer = optax.adam(1e-3).init(params)
    return State(params, optimizer, jax.random.key(int(fill)), None, jnp.int32(fill))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def save(directory, steps, scores=None):
    """Checkpoints of `make(step)`."""
    with Manager(directory) as manager:
        for step in steps:
            manager.save(step, make(step), (scores or {}).get(step))
        manager.wait()
        return manager.steps


def test_a_state_comes_back_as_it_was(tmp_path):
    with Manager(tmp_path) as manager:
        manager.save(5, make(5))
        manager.wait()
        step, state = manager.restore(make)
    assert step == 5
    assert_same(state, make(5))
    assert state.target is None
    # the key is a typed one that draws what the saved one would have drawn
    assert jax.random.bits(state.key) == jax.random.bits(jax.random.key(5))
    # the optimizer goes on
    grads = {"w": jnp.ones(64), "half": jnp.ones(3, jnp.bfloat16)}
    updates, _ = optax.adam(1e-3).update(grads, state.optimizer)
    expected, _ = optax.adam(1e-3).update(grads, make(5).optimizer)
    assert_same(updates, expected)


def test_a_later_process_finds_the_last_one(tmp_path):
    save(tmp_path / "deep" / "run", [5, 10])
    with Manager(tmp_path / "deep" / "run") as manager:
        step, state = manager.restore_or(make)
    assert step == 10
    assert_same(state, make(10))


def test_restore_only_traces_make(tmp_path):
    save(tmp_path, [5])
    traced = []

    def abstract():
        state = make()
        traced.append(isinstance(state.params["w"] + 1, jax.core.Tracer))
        return state._replace(updates=state.updates + jnp.int32(state.params["w"][0]))

    with Manager(tmp_path) as manager:
        assert_same(manager.restore(abstract)[1], make(5))
    assert len(traced) == 1


def test_restore_or_makes_a_state_where_there_is_none(tmp_path):
    with Manager(tmp_path / "new") as manager:
        step, state = manager.restore_or(lambda: make(3))
    assert step == 0
    assert_same(state, make(3))


def test_restore_says_that_there_is_none(tmp_path):
    with (
        Manager(tmp_path) as manager,
        pytest.raises(CheckpointError, match=f"{tmp_path} holds no whole checkpoint"),
    ):
        manager.restore(make)
    assert issubclass(CheckpointError, config.UsageError)


def test_a_file_in_their_place_is_told(tmp_path):
    (tmp_path / "checkpoints").touch()  # Orbax would wait for ten minutes after a save has failed
    with pytest.raises(CheckpointError, match="checkpoints is a file where"):
        Manager(tmp_path / "checkpoints")


def test_a_step_can_be_asked_for(tmp_path):
    save(tmp_path, [5, 10])
    with Manager(tmp_path) as manager:
        assert_same(manager.restore(make, step=5)[1], make(5))
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 7; it has \[5, 10\]"):
            manager.restore(make, step=7)


def test_the_last_two_and_the_best_are_kept(tmp_path):
    scores = {1: 3.0, 2: 9.0, 3: 4.0, 4: 8.0, 6: -1.0}
    assert save(tmp_path, range(1, 7), scores) == [2, 5, 6]
    with Manager(tmp_path) as manager:
        assert manager.best_step == 2
        assert_same(manager.restore(make, manager.best_step)[1], make(2))
        manager.save(7, make(7), 10.0)  # better
        manager.save(8, make(8))
        manager.save(9, make(9))
        manager.wait()
        assert (manager.steps, manager.best_step) == ([7, 8, 9], 7)


def test_without_scores_there_is_no_best(tmp_path):
    assert save(tmp_path, [1, 2, 3]) == [2, 3]
    with Manager(tmp_path) as manager:
        assert manager.best_step is None


def test_a_score_that_is_no_number_never_counts_as_the_best(tmp_path):
    scores = {1: 9.0, 2: float("nan"), 3: -1.0}
    assert save(tmp_path, [1, 2, 3, 4], scores) == [1, 3, 4]
    with Manager(tmp_path) as manager:
        assert manager.best_step == 1


def test_keep_says_how_many(tmp_path):
    with Manager(tmp_path, keep=1) as manager:
        for step in (1, 2, 3):
            manager.save(step, make(step))
        manager.wait()
        assert manager.steps == [3]


def test_saving_where_one_resumed_writes_nothing(tmp_path):
    save(tmp_path, [5, 10])
    with Manager(tmp_path) as manager:
        manager.save(10, make(99))
        manager.wait()
        assert_same(manager.restore(make, step=10)[1], make(10))


def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    x = jnp.arange(4e6)
    with Manager(tmp_path) as manager:
        manager.save(1, {"x": x})
        x = overwrite(x)
        jax.block_until_ready(x)
        manager.wait()
        _, tree = manager.restore(lambda: {"x": jnp.zeros(4_000_000)})
    np.testing.assert_array_equal(tree["x"], np.arange(4e6, dtype=np.float32))


def test_a_state_of_two_devices_is_restored_onto_one(tmp_path):
    replicated = sharding.replicate(make(4), sharding.mesh(2))
    assert len(replicated.params["w"].devices()) == 2
    with Manager(tmp_path) as manager:
        manager.save(4, replicated)
        manager.wait()
        _, state = manager.restore(make)
    assert_same(state, make(4))
    assert {d for x in jax.tree.leaves(state) for d in x.devices()} == {jax.local_devices()[0]}


def data_file(step_directory):
    """The file that holds the arrays: the largest."""
    return max(
        (p for p in step_directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def delete(path):
    path.unlink()


def swap_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # still text, and still JSON where it hits a name
    path.write_bytes(bytes(content))


FILES = ["_CHECKPOINT_METADATA", "state/_METADATA", "state/manifest.ocdbt", "data"]


@pytest.mark.parametrize("damage", [flip, truncate, empty, delete])
@pytest.mark.parametrize("file", FILES)
def test_behind_a_damaged_checkpoint_the_older_one_is_taken(file, damage, tmp_path, caplog):
    save(tmp_path, [5, 10])
    damage(data_file(tmp_path / "10") if file == "data" else tmp_path / "10" / file)
    with Manager(tmp_path) as manager, caplog.at_level(logging.WARNING):
        step, state = manager.restore_or(make)
        assert step == 5
        assert_same(state, make(5))
        warnings = [record.getMessage() for record in caplog.records if record.name == LOGGER]
        assert any("step 10" in warning and "damaged-10" in warning for warning in warnings)
        assert manager.steps == [5]
        assert (tmp_path / "damaged-10").is_dir()
        manager.save(10, make(100))  # training comes by again
        manager.wait()
        assert manager.restore(make)[0] == 10
        assert_same(manager.restore(make)[1], make(100))


@pytest.mark.parametrize("damage", [flip, swap_bit, truncate, empty, delete])
def test_a_damaged_score_does_not_keep_the_checkpoints_from_opening(damage, tmp_path):
    save(tmp_path, [5, 10], {10: 3.0})
    damage(tmp_path / "10" / "metrics" / "metrics")
    with Manager(tmp_path) as manager:
        step, state = manager.restore_or(make)
        assert step in (5, 10)
        assert_same(state, make(step))
        assert manager.best_step in (None, 10)
        manager.save(15, make(15), 1.0)
        manager.wait()
        assert manager.restore(make)[0] == 15


def test_arrays_that_changed_behind_orbax_s_back_are_found_by_the_checksum(tmp_path, monkeypatch):
    save(tmp_path, [5, 10])
    with Manager(tmp_path) as manager:
        load = manager._checkpointer.load_checkpointables

        def altered(step, **options):
            tree = load(step, **options)
            if step == 10:
                tree["state"].params["w"] = tree["state"].params["w"].at[7].add(1)
            return tree

        monkeypatch.setattr(manager._checkpointer, "load_checkpointables", altered)
        assert manager.restore(make)[0] == 5
        with pytest.raises(CheckpointError, match=r"step 10 .* is damaged: .*checksum"):
            manager.restore(make, step=10)


def test_a_part_comes_back_without_the_rest_being_read(tmp_path):
    save(tmp_path, [5, 10])
    with Manager(tmp_path) as manager:
        step, params = manager.restore(lambda: make().params, part="params")
        assert step == 10
        assert_same(params, make(10).params)
        _, key = manager.restore(lambda: make().key, step=5, part="key")
        assert_same(key, make(5).key)
        with pytest.raises(CheckpointError, match="no whole checkpoint"):  # shapes of another run
            manager.restore(lambda: make(size=32).params, part="params")


def test_a_part_has_a_checksum_of_its_own(tmp_path, monkeypatch):
    save(tmp_path, [5, 10])
    with Manager(tmp_path) as manager:
        load = manager._checkpointer.load_checkpointables

        def altered(step, **options):
            tree = load(step, **options)
            w = tree["state"]["params"]["w"]
            return {"state": {"params": {**tree["state"]["params"], "w": w.at[7].add(step == 10)}}}

        monkeypatch.setattr(manager._checkpointer, "load_checkpointables", altered)
        assert manager.restore(lambda: make().params, part="params")[0] == 5


def test_checkpoints_of_0_1_with_one_checksum_for_all_are_read_and_checked(tmp_path, monkeypatch):
    with Manager(tmp_path) as manager:
        write = manager._checkpointer.save_checkpointables_async

        def older(step, checkpointables, **options):
            whole = checkpoint._checksum(make(step)) if step == 5 else 7
            write(step, checkpointables, **{**options, "custom_metadata": {"checksum": whole}})

        monkeypatch.setattr(manager._checkpointer, "save_checkpointables_async", older)
        for step in (5, 10):
            manager.save(step, make(step))
        manager.wait()
    with Manager(tmp_path) as manager:
        step, state = manager.restore(make)
        assert step == 5
        assert_same(state, make(5))
        assert_same(manager.restore(lambda: make().params, 5, "params")[1], make(5).params)


def test_one_damaged_a_second_time_replaces_the_first_one_set_aside(tmp_path):
    for _ in range(2):
        save(tmp_path, [5, 10])
        flip(data_file(tmp_path / "10"))
        with Manager(tmp_path) as manager:
            assert manager.restore_or(make)[0] == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["5", "damaged-10"]


@pytest.mark.parametrize("restore", [Manager.restore, Manager.restore_or])
@pytest.mark.parametrize("file", FILES)
def test_all_damaged_is_an_error_that_names_the_directory(file, restore, tmp_path):
    save(tmp_path, [5, 10])
    for step in ("5", "10"):
        truncate(data_file(tmp_path / step) if file == "data" else tmp_path / step / file)
    with (
        Manager(tmp_path) as manager,
        pytest.raises(CheckpointError, match=str(tmp_path)),  # and not a fresh start in silence
    ):
        restore(manager, make)
    left = {path.name.removeprefix("damaged-") for path in tmp_path.iterdir()}
    assert left == {"5", "10"}  # for somebody to look at


def test_another_run_s_shapes_are_an_error(tmp_path):
    save(tmp_path, [5])
    with Manager(tmp_path) as manager, pytest.raises(CheckpointError, match=str(tmp_path)):
        manager.restore(lambda: make(size=32))


def test_what_a_killed_process_left_half_written_is_ignored(tmp_path):
    save(tmp_path, [5])
    shutil.copytree(tmp_path / "5", tmp_path / "10.orbax-checkpoint-tmp")
    data_file(tmp_path / "10.orbax-checkpoint-tmp").unlink()
    with Manager(tmp_path) as manager:
        assert manager.steps == [5]
        assert manager.restore_or(make)[0] == 5
        manager.save(10, make(10))
        manager.wait()
        assert manager.steps == [5, 10]
        assert_same(manager.restore(make)[1], make(10))


def test_a_reader_leaves_alone_what_another_process_is_writing(tmp_path):
    with Manager(tmp_path) as writer:
        writer.save(1, {"x": jnp.zeros(20_000_000)})
        writing = list(tmp_path.glob("*.orbax-checkpoint-tmp"))
        with Manager(tmp_path) as reader:  # an evaluation, say, while training goes on
            assert reader.steps == [] if writing else [1]
        writer.wait()
        assert writer.steps == [1]
        assert writer.restore(lambda: {"x": jnp.zeros(20_000_000)})[0] == 1


SAVE_FOREVER = """
import itertools, sys
import jax.numpy as jnp
from rljax.checkpoint import Manager

with Manager(sys.argv[1]) as manager:
    for step in itertools.count(1):
        manager.save(step, {"x": jnp.full(5_000_000, float(step))})
        print(step, flush=True)
"""


def test_kill_9_in_the_middle_of_saving_leaves_a_whole_one(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            for line in process.stdout:
                # the fourth is being written, and some of those before are whole
                if int(line) >= 4 and list(tmp_path.glob("*.orbax-checkpoint-tmp")):
                    break
        finally:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with Manager(tmp_path) as manager:
        step, tree = manager.restore_or(lambda: {"x": jnp.zeros(5_000_000)})
        assert step >= 1
        np.testing.assert_array_equal(tree["x"], np.full(5_000_000, float(step), np.float32))
        manager.save(step + 1, tree)
        manager.wait()
        assert manager.steps[-1] == step + 1


def test_the_checksum_sees_every_leaf_and_every_place():
    reference = checkpoint._checksum(make(5))
    assert checkpoint._checksum(make(5)) == reference
    state = make(5)
    changes = [
        state._replace(key=jax.random.key(6)),
        state._replace(updates=jnp.int32(6)),
        state._replace(params={**state.params, "w": state.params["w"].at[63].add(1)}),
        state._replace(params={**state.params, "half": state.params["half"].at[0].add(1)}),
    ]
    assert reference not in map(checkpoint._checksum, changes)
