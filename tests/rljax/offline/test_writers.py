import pathlib

import jax
import numpy as np
import pytest

from rljax.offline import dataset, event_log, mapped, minari_source, schema, sources, writers
from rljax.offline.dataset import Episode
from rljax.types import Box, Discrete, EnvSpec, MultiDiscrete, Observation, Part


def box():
    spec = EnvSpec("Task-v0", (2,), "float32", Box((-1.0, -2.0), (1.0, 2.0)), max_episode_steps=9)
    return spec, lambda rng, steps: (
        Observation(rng.normal(size=(steps + 1, 2)).astype(np.float32)),
        rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
    )


def discrete():
    return EnvSpec("Task-v0", (3,), "float32", Discrete(4)), lambda rng, steps: (
        Observation(rng.normal(size=(steps + 1, 3)).astype(np.float32)),
        rng.integers(4, size=steps),
    )


def masked():
    def episode(rng, steps):
        mask = rng.random((steps + 1, 5)) < 0.5
        mask[:, 2] = True
        return Observation(rng.random((steps + 1, 2, 3), np.float32), mask), np.full(steps, 2)

    return EnvSpec("board", (2, 3), "float32", Discrete(5), has_mask=True), episode


def components():
    def episode(rng, steps):
        mask = np.ones((steps + 1, 5), bool)
        mask[1:, 0] = False
        action = np.stack([np.ones(steps), rng.integers(3, size=steps)], axis=1)
        return Observation(rng.random((steps + 1, 1), np.float32), mask), action.astype(np.int32)

    return EnvSpec("parts", (1,), "float32", MultiDiscrete((2, 3)), has_mask=True), episode


def pixels():
    def episode(rng, steps):
        seen = rng.integers(256, size=(steps + 1, 40, 36, 3), dtype=np.uint8)
        return Observation(seen), rng.integers(2, size=steps)

    return EnvSpec("pixels", (40, 36, 3), "uint8", Discrete(2)), episode


def named():
    parts = (Part("camera", (8, 6, 1), "uint8"), Part("vector", (2,), "float32"))

    def episode(rng, steps):
        camera = rng.integers(256, size=(steps + 1, 8, 6, 1), dtype=np.uint8)
        vector = rng.random((steps + 1, 2), np.float32)
        return Observation({"camera": camera, "vector": vector}), rng.integers(2, size=steps)

    return EnvSpec("named", (), "", Discrete(2), named_parts=parts), episode


KINDS = [box, discrete, masked, components, pixels, named]


def make(kind):
    """Episodes of 3, 1, 4 and 2 steps; the second and the fourth are truncated."""
    spec, draw = kind()
    rng = np.random.default_rng(7)
    episodes = []
    for steps, terminated in [(3, True), (1, False), (4, True), (2, False)]:
        observation, action = draw(rng, steps)
        log_prob = np.float32(-(10.0 ** rng.uniform(-9, 1, steps)))  # exp cannot keep the small
        extras = {"log_prob": log_prob, "value": rng.normal(size=steps).astype(np.float32)}
        reward = rng.normal(size=steps).astype(np.float32)
        episodes.append(Episode(observation, action, reward, terminated, extras))
    return dataset.make(spec, episodes, "made")


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours.rows) == jax.tree.structure(theirs.rows)
    for x, y in zip(jax.tree.leaves(ours.rows), jax.tree.leaves(theirs.rows), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(ours.starts, theirs.starts)
    assert ours.spec == theirs.spec


@pytest.mark.parametrize("kind", KINDS)
def test_minari_reads_back_equal(tmp_path, kind):
    pytest.importorskip("h5py", reason="needs the extra offline")
    made = make(kind)
    writers.write_minari(made, tmp_path / "task")
    read, counts, _ = minari_source.read(tmp_path / "task")
    assert_equal(read, made)
    assert counts == {}


@pytest.mark.parametrize("kind", KINDS)
def test_parquet_reads_back_equal(tmp_path, kind):
    pytest.importorskip("pyarrow", reason="needs the extra offline")
    made = make(kind)
    writers.write_parquet(made, tmp_path / "rows.parquet", policy_version="v3")
    read, counts, policies = event_log.read_parquet(tmp_path / "rows.parquet")
    assert_equal(read, made)
    assert counts == {"rows": 14}
    assert policies == {"v3": 10}


@pytest.mark.parametrize("kind", KINDS)
def test_mapped_rows_read_back_equal_however_they_were_parted(tmp_path, kind):
    made = make(kind)
    with mapped.writing(tmp_path / "rows") as append:
        append(made.select([0, 1]))
        append(made.select([2]))
        append(made.select([3]))
    assert_equal(sources.open(tmp_path / "rows"), made)
    pytest.importorskip("h5py", reason="needs the extra offline")
    writers.write_minari(made, tmp_path / "task")
    parts = list(minari_source.parts(tmp_path / "task", rows=4))
    assert [part.num_episodes for part in parts] == [2, 1, 1]  # 3 + 1, 4, 2 steps
    for number, part in enumerate(([0, 1], [2], [3])):
        assert_equal(parts[number], made.select(part))


@pytest.mark.parametrize(
    "name",
    [
        "reagent_event_logs/cartpole_training.json.bz2",
        "imitation_rollouts/pendulum_expert.npz",
        "vw_cb_logs/igl_3states.dsjson",
    ],
)
def test_real_data_read_back_equal(tmp_path, shared_data, name):
    pytest.importorskip("pyarrow", reason="needs the extra offline")
    pytest.importorskip("h5py", reason="needs the extra offline")
    folder, rest = name.split("/", 1)
    made = sources.open(shared_data(folder) / rest)
    writers.write_parquet(made, tmp_path / "rows.parquet")
    assert_equal(sources.open(tmp_path / "rows.parquet"), made)
    writers.write_minari(made, tmp_path / "minari")
    assert_equal(sources.open(tmp_path / "minari"), made)


def test_the_parquet_log_is_the_schema(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra offline")
    made = make(masked)
    writers.write_parquet(made, tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet").to_pydict()
    known = {"episode_id", "step", "state", "action", "action_mask", "reward", "terminated"}
    known |= {"truncated", "final", "log_prob", "value", "propensity", "schema_version"}
    assert set(table) == known
    assert table["step"] == [0, 1, 2, 3, 0, 1, 0, 1, 2, 3, 4, 0, 1, 2]
    ends = [row for row, ended in enumerate(table["terminated"]) if ended]
    cuts = [row for row, cut in enumerate(table["truncated"]) if cut]
    finals = [row for row, final in enumerate(table["final"]) if final]
    assert (ends, cuts, finals) == ([2, 9], [4, 12], [3, 5, 10, 13])
    assert [row for row, p in enumerate(table["propensity"]) if p is None] == finals
    chances = [p for p in table["propensity"] if p is not None]
    logs = made.rows.extras["log_prob"][made.rows.valid]
    np.testing.assert_allclose(chances, np.exp(logs.astype(np.float64)), rtol=1e-12)
    assert table["schema_version"] == [schema.VERSION] * 14


def test_a_parquet_file_cut_short_is_told(tmp_path):
    pytest.importorskip("pyarrow", reason="needs the extra offline")
    path = tmp_path / "rows.parquet"
    writers.write_parquet(make(box), path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"rows\.parquet is no Parquet file, or is cut short"):
        event_log.read_parquet(path)


@pytest.mark.parametrize("kind", ["parquet", "minari"])
def test_a_bit_that_flipped_is_found(tmp_path, kind):
    pytest.importorskip({"parquet": "pyarrow", "minari": "h5py"}[kind])
    made = make(box)
    if kind == "parquet":
        path = tmp_path / "rows.parquet"
        writers.write_parquet(made, path)
        read = event_log.read_parquet
    else:
        writers.write_minari(made, tmp_path)
        path = tmp_path / "data" / "main_data.hdf5"
        read = minari_source.read
    reward = made.rows.reward[:3].astype(np.float32 if kind == "parquet" else np.float64)
    data = bytearray(path.read_bytes())
    data[data.index(reward.tobytes())] ^= 1  # the last bit of a reward
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"cut short|is damaged"):
        read(path)


def test_a_parquet_row_that_cannot_be_right_is_named(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="needs the extra offline")
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "state": [[0.0], [1.0], [2.0]],
            "action": [0, 1, 0],
            "reward": [0.0, None, 1.0],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet, row 2: reward is nan"):
        event_log.read_parquet(tmp_path / "a.parquet")
    ragged = table.set_column(0, "state", pa.array([[0.0], [1.0], [2.0, 3.0]]))
    pq.write_table(ragged, tmp_path / "b.parquet")
    rules = schema.Rules(schema.OnFault.DROP)
    with pytest.raises(ValueError, match=r"row 3: state is .* not a list of 1 numbers"):
        event_log.read_parquet(tmp_path / "b.parquet", schema.Columns(reward="action"))
    assert event_log.read_parquet(tmp_path / "b.parquet", rules=rules).dataset.num_episodes == 1
    pq.write_table(table.append_column("reward", pa.array([1.0, 1.0, 1.0])), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"c\.parquet has 2 columns 'reward'"):
        event_log.read_parquet(tmp_path / "c.parquet", rules=rules)


def test_times_of_parquet_are_seconds(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="needs the extra offline")
    import datetime

    import pyarrow.parquet as pq

    start = datetime.datetime(2021, 2, 4, tzinfo=datetime.UTC)
    times = [start + datetime.timedelta(seconds=s) for s in (0, 30, 60.5)]
    columns = {"time": pa.array(times), "state": [[0.0]] * 3, "action": [0] * 3, "reward": [1] * 3}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    rules = schema.Rules(session_gap=30.0, unfinished=schema.Unfinished.TERMINATED)
    made = event_log.read_parquet(tmp_path / "a.parquet", rules=rules).dataset
    assert (np.diff(made.starts) - 1).tolist() == [2, 1]


def test_a_name_of_the_schema_is_not_taken_twice(tmp_path):
    pytest.importorskip("pyarrow", reason="needs the extra offline")
    spec, draw = box()
    observation, action = draw(np.random.default_rng(0), 2)
    episode = Episode(observation, action, np.zeros(2, np.float32), True, {"step": np.zeros(2)})
    with pytest.raises(ValueError, match="'step' beside the steps of a dataset is a column"):
        writers.write_parquet(dataset.make(spec, [episode]), tmp_path / "a.parquet")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    """Not a crash: HDF5 ends the process if it meets the full disk itself."""
    pytest.importorskip("h5py", reason="needs the extra offline")
    met = []

    def full(path, data):
        met.append((path.name, len(data)))
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    seen = Observation(np.zeros((3, 1), np.float32))
    episode = Episode(seen, np.array([0, 1]), np.ones(2, np.float32), True)
    made = dataset.make(EnvSpec("task", (1,), "float32", Discrete(2)), [episode])
    with pytest.raises(OSError, match="No space left"):
        writers.write_minari(made, tmp_path / "a")
    ((name, size),) = met
    assert (name, size > 1_000) == ("main_data.hdf5", True)
    assert not list((tmp_path / "a").iterdir())


def test_minari_is_never_written_over(tmp_path):
    pytest.importorskip("h5py", reason="needs the extra offline")
    made = make(box)
    with pytest.raises(ValueError, match="is no id of Minari's"):
        writers.write_minari(made, tmp_path / "a", "no version")
    assert not (tmp_path / "a").exists()
    writers.write_minari(made, tmp_path / "a")
    with pytest.raises(ValueError, match="exists already"):
        writers.write_minari(made, tmp_path / "a")


@pytest.mark.parametrize("kind", KINDS)
def test_the_minari_package_reads_the_same(tmp_path, kind):
    minari = pytest.importorskip("minari")
    made = make(kind)
    writers.write_minari(made, tmp_path / "task", "task/random-v2")
    theirs = minari.MinariDataset(tmp_path / "task" / "data")
    assert (theirs.total_episodes, theirs.total_steps) == (4, 10)
    for episode, ours in zip(theirs.iterate_episodes(), made.episodes(), strict=True):
        seen = ours.observation.features
        if made.spec.named_parts:
            parts = {name: episode.observations[name] for name in seen}
        else:
            seen = {"": seen}
            lone = episode.observations
            parts = {"": lone["observation"] if made.spec.has_mask else lone}
        for name, values in seen.items():
            np.testing.assert_array_equal(parts[name], values)
        if made.spec.has_mask:
            np.testing.assert_array_equal(
                episode.observations["action_mask"], ours.observation.mask
            )
        np.testing.assert_array_equal(episode.actions, ours.action)
        np.testing.assert_array_equal(episode.rewards, ours.reward)
        assert episode.terminations[-1] == ours.terminated
        assert episode.truncations[-1] != ours.terminated
        assert theirs.observation_space.contains(jax.tree.map(lambda x: x[0], episode.observations))
        assert theirs.action_space.contains(episode.actions[0])
        repr(episode)
