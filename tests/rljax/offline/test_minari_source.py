import io
import json

import numpy as np
import pytest

from rljax.offline import dataset as datasets
from rljax.offline import minari_source, writers
from rljax.offline.schema import OnFault
from rljax.types import Box, Discrete, EnvSpec, Observation

h5py = pytest.importorskip("h5py", reason="needs the extra offline")

VECTOR = {"type": "Box", "dtype": "float64", "shape": [1], "low": [-np.inf], "high": [np.inf]}
ACTION = {"type": "Box", "dtype": "float32", "shape": [1], "low": [-200.0], "high": [200.0]}


def episode(start, steps, terminated=True):
    """States from `start`, actions and rewards of equal numbers."""
    end = np.arange(steps) == steps - 1
    return {
        "observations": np.arange(start, start + steps + 1.0)[:, None],
        "actions": np.arange(start, start + steps, dtype=np.float32)[:, None],
        "rewards": np.arange(start, start + steps, dtype=np.float64),
        "terminations": end & terminated,
        "truncations": end & (not terminated),
        "infos/extra": np.zeros(steps + 1),
    }


@pytest.fixture
def write(tmp_path):
    def write(episodes, observation=VECTOR, action=ACTION, **more):
        folder = tmp_path / "task"
        (folder / "data").mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / "data" / "main_data.hdf5", "w") as file:
            for number, arrays in enumerate(episodes):
                group = file.create_group(f"episode_{number}")
                for name, x in arrays.items():
                    dtype = h5py.vlen_dtype(np.uint8) if x.dtype == object else x.dtype
                    group.create_dataset(name, data=x, dtype=dtype)
        metadata = {"total_episodes": len(episodes), "data_format": "hdf5"} | more
        if observation is not None:
            metadata["observation_space"] = json.dumps(observation)
            metadata["action_space"] = json.dumps(action)
        (folder / "data" / "metadata.json").write_text(json.dumps(metadata))
        return folder

    return write


def test_every_episode_is_aligned(write):
    # A reader that cuts T + 1 observations and T actions by one index shifts episode k by k rows.
    starts = [0, 10, 20, 100]
    folder = write([episode(start, 3 + n) for n, start in enumerate(starts)])
    made = minari_source.read(folder).dataset
    assert made.num_episodes == 4
    for start, each in zip(starts, made.episodes(), strict=True):
        steps = len(each.reward)
        np.testing.assert_array_equal(
            each.observation.features[:, 0], np.arange(start, start + steps + 1)
        )
        np.testing.assert_array_equal(each.action[:, 0], np.arange(start, start + steps))
        np.testing.assert_array_equal(each.reward, np.arange(start, start + steps))
    assert made.rows.observation.features.dtype == np.float32
    assert made.rows.extras == {}


@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_without_spaces_whole_numbers_are_choices_and_lone_observations_vectors(write, dtype):
    first, second = episode(0, 3), episode(5, 2)
    first["actions"], second["actions"] = dtype([0, 1, 0]), dtype([2, 1])
    first["observations"] = first["observations"][:, 0]
    second["observations"] = second["observations"][:, 0]
    flat = minari_source.read(write([first, second], None)).dataset
    assert flat.spec.action == Discrete(3)
    np.testing.assert_array_equal(flat.rows.observation.features[:4], [[0], [1], [2], [3]])
    first["actions"], second["actions"] = first["actions"][:, None], second["actions"][:, None]
    with_axis = minari_source.read(write([first, second], None)).dataset
    assert with_axis.spec == flat.spec
    np.testing.assert_array_equal(with_axis.rows.action, flat.rows.action)


@pytest.mark.parametrize("actions", [np.zeros((3, 2), np.int64), np.zeros(3, bool)])
def test_without_spaces_what_may_be_choices_or_reals_is_refused(write, actions):
    with pytest.raises(ValueError, match="which may be choices or reals, and no metadata"):
        minari_source.read(write([episode(0, 3) | {"actions": actions}], None))


CHOICE = {"type": "Discrete", "n": 3, "start": 1}
CHOICES = {"type": "MultiDiscrete", "nvec": [2, 3], "start": [0, 0]}
FLAGS = {"type": "MultiBinary", "n": 2}


@pytest.mark.parametrize(
    ("space", "seen", "row"),
    [
        (CHOICE, [1, 3, 4, 2], 2),
        (CHOICE, [1, 3, 2, 0], 3),
        (CHOICES, [[0, 2], [2, 0], [0, 0], [0, 0]], 1),
        (FLAGS, [[0, 1], [1, 0], [0, 0], [0, 2]], 3),
    ],
)
def test_an_observed_choice_outside_its_space_is_refused(write, space, seen, row):
    seen = np.array(seen)
    folder = write([episode(0, 3) | {"observations": seen}], space)
    with pytest.raises(ValueError, match=rf"episode_0 .*the observation {row} is .*, not of "):
        minari_source.read(folder)
    seen[row] = 1
    assert minari_source.read(write([episode(0, 3) | {"observations": seen}], space)).dataset


def test_time_outs_are_no_terminations(write):
    made = minari_source.read(write([episode(0, 2, False), episode(5, 2)])).dataset
    assert [each.terminated for each in made.episodes()] == [False, True]
    np.testing.assert_array_equal(made.rows.discount, [1, 1, 1, 1, 0, 1])


def test_episodes_come_in_the_order_of_their_numbers(write):
    made = minari_source.read(write([episode(10 * n, 1) for n in range(12)])).dataset
    np.testing.assert_array_equal(made.rows.reward[::2], 10 * np.arange(12))  # not 0, 1, 10, 11, 2


def test_the_spec_is_that_of_the_metadata(write):
    task = json.dumps({"id": "Hopper-v5", "max_episode_steps": 1000})
    made = minari_source.read(write([episode(0, 2)], env_spec=task)).dataset
    expected = EnvSpec(
        "Hopper-v5", (1,), "float32", Box((-200.0,), (200.0,)), max_episode_steps=1000
    )
    assert made.spec == expected


def test_without_spaces_arrays_tell(write):
    arrays = episode(0, 3) | {"actions": np.array([0, 2, 1])}
    made = minari_source.read(write([arrays], None)).dataset
    assert made.spec.action == Discrete(3)
    made = minari_source.read(write([episode(1, 3)], None)).dataset
    assert made.spec.action == Box((1.0,), (3.0,))


def test_dicts_become_one_vector_and_a_mask(write):
    goal = VECTOR | {"shape": [2], "low": [-1.0, -1.0], "high": [1.0, 1.0]}
    mask = {"type": "Box", "dtype": "int8", "shape": [3], "low": [0] * 3, "high": [1] * 3}
    parts = {"pose": VECTOR, "goal": goal, "action_mask": mask}
    arrays = episode(4, 2) | {"actions": np.array([1, 2])}
    arrays |= {
        "observations/pose": arrays.pop("observations"),
        "observations/goal": np.full((3, 2), 0.5),
        "observations/action_mask": np.array([[0, 1, 0], [1, 1, 1], [1, 0, 0]], np.int8),
    }
    action = {"type": "Discrete", "dtype": "int64", "start": 0, "n": 3}
    made = minari_source.read(write([arrays], {"type": "Dict", "subspaces": parts}, action)).dataset
    np.testing.assert_array_equal(  # by name: goal, then pose
        made.rows.observation.features, [[0.5, 0.5, 4], [0.5, 0.5, 5], [0.5, 0.5, 6]]
    )
    np.testing.assert_array_equal(made.rows.observation.mask[2], [True, False, False])
    assert made.spec.has_mask


def test_tuples_and_choices_become_one_vector(write):
    choice = {"type": "Discrete", "dtype": "int64", "start": 0, "n": 3}
    arrays = episode(4, 1)
    arrays |= {
        "observations/_index_0": arrays.pop("observations"),
        "observations/_index_1": np.array([2, 0]),
    }
    space = {"type": "Tuple", "subspaces": [VECTOR, choice]}
    made = minari_source.read(write([arrays], space)).dataset
    np.testing.assert_array_equal(made.rows.observation.features, [[4, 0, 0, 1], [5, 1, 0, 0]])


def test_frames_are_unpacked(write):
    image = pytest.importorskip("PIL.Image")
    frames = np.stack([np.full((40, 32, 3), shade, np.uint8) for shade in (0, 99, 200)])
    packed = np.empty(3, object)
    for i, frame in enumerate(frames):
        buffer = io.BytesIO()
        image.fromarray(frame).save(buffer, format="JPEG")
        packed[i] = np.frombuffer(buffer.getvalue(), np.uint8)
    space = {"type": "Box", "dtype": "uint8", "shape": [40, 32, 3]}
    space |= {"low": np.zeros((40, 32, 3)).tolist(), "high": np.full((40, 32, 3), 255).tolist()}
    made = minari_source.read(write([episode(0, 2) | {"observations": packed}], space)).dataset
    assert made.spec.observation_dtype == "uint8"
    np.testing.assert_array_equal(made.rows.observation.features, frames)  # flat shades survive


FAULTS = {
    "T observations": ({"observations": np.zeros((3, 1))}, "there must be one more"),
    "T - 1 actions": ({"actions": np.zeros((2, 1), np.float32)}, "has 2 of action and 3 rewards"),
    "terminations": ({"terminations": np.zeros(2, bool)}, "has 2 terminations and 3 rewards"),
    "goes on": ({"terminations": np.array([True, False, True])}, "goes on behind step 0"),
    "cut early": ({"truncations": np.array([False, True, False])}, "goes on behind step 1"),
    "NaN": ({"rewards": np.array([0, np.nan, 1])}, "has the reward nan in step 1"),
    "too large": ({"rewards": np.array([0, 1e300, 1])}, "has the reward 1e[+]300 in step 1"),
    "NaN seen": ({"observations": np.full((4, 1), np.nan)}, "not finite in row 0"),
    "text": ({"rewards": np.array([b"a", b"b", b"c"])}, "one number a step would be right"),
    "flags of rewards": ({"rewards": np.ones(3, bool)}, "has rewards of bool"),
    "one reward": ({"rewards": np.float64(1.0)}, r"rewards of float64 of shape \(\)"),
    "no flag": (
        {"terminations": np.array([0.0, 0.0, np.nan])},
        "has terminations that are neither true nor false",
    ),
    "beyond": ({"actions": np.full((3, 1), 300, np.float32)}, r"the action \[300.0\] in step 0"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_name_the_episode_and_may_be_dropped(write, name):
    change, told = FAULTS[name]
    folder = write([episode(0, 2), episode(9, 3) | change, episode(20, 1)])
    with pytest.raises(ValueError, match=f"episode.1.*{told}"):
        minari_source.read(folder)
    made, counts, _ = minari_source.read(folder, on_fault=OnFault.DROP)
    assert [len(each.reward) for each in made.episodes()] == [2, 1]
    assert counts == {"episodes_dropped": 1}


def test_actions_beyond_the_bounds_may_be_clipped(write):
    arrays = episode(0, 2) | {"actions": np.array([[300], [5]], np.float32)}
    made, counts, _ = minari_source.read(write([arrays]), clip_actions=True)
    assert made.rows.action[:2].tolist() == [[200], [5]]
    assert counts == {"actions_clipped": 1}


def test_propensities_that_cannot_be_are_found(tmp_path):
    chance = {"log_prob": np.log(np.full(2, 0.5, np.float32))}
    episodes = [
        datasets.Episode(
            Observation(np.zeros((3, 1), np.float32)),
            np.zeros(2, int),
            np.ones(2),
            terminated=True,
            extras=chance,
        )
    ] * 2
    made = datasets.make(EnvSpec("task", (1,), "float32", Discrete(2)), episodes)
    writers.write_minari(made, tmp_path)
    for change, told in (
        (np.array([0.0, np.nan]), "episode 1 has the log_prob nan in step 1"),
        (np.array([-np.inf, 0.0]), "episode 1 has the log_prob -inf in step 0"),
        (None, "episode_1 has no infos/log_prob"),
    ):
        with h5py.File(tmp_path / "data" / "main_data.hdf5", "r+") as file:
            del file["episode_1/infos/log_prob"]
            if change is not None:
                file["episode_1/infos/log_prob"] = change
        with pytest.raises(ValueError, match=told):
            minari_source.read(tmp_path)
        kept = minari_source.read(tmp_path, on_fault=OnFault.DROP)
        assert (kept.dataset.num_episodes, kept.counts) == (1, {"episodes_dropped": 1})


@pytest.mark.parametrize("text", ["[]", '{"total_episodes": "1"}', "{"])
def test_metadata_that_cannot_be_used_are_told(write, text):
    folder = write([episode(0, 1)])
    (folder / "data" / "metadata.json").write_text(text)
    with pytest.raises(ValueError, match=r"metadata\.json is no JSON"):
        minari_source.read(folder)


def test_a_file_with_fewer_episodes_than_its_metadata_is_told(write):
    with pytest.raises(ValueError, match="has 1 of the 3 episodes of its metadata"):
        minari_source.read(write([episode(0, 1)], total_episodes=3))


def test_a_file_cut_short_is_told(write):
    folder = write([episode(0, 50)])
    path = folder / "data" / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"main_data\.hdf5 is no HDF5 file, or is cut short"):
        minari_source.read(folder)


def test_another_task_is_told(write):
    spec = EnvSpec("task", (4,), "float32", Box((-200.0,), (200.0,)))
    with pytest.raises(ValueError, match=r"episode 0 shows \(1,\) where task has observation"):
        minari_source.read(write([episode(0, 1)]), spec)


def test_without_spaces_damaged_episodes_are_told_or_dropped_too(write):
    folder = write([episode(0, 2), episode(5, 2)], observation=None)
    path = folder / "data" / "main_data.hdf5"
    with h5py.File(path, "a") as file:
        del file["episode_0/observations"]
        file["episode_0/observations/x"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"main_data\.hdf5, episode_0 is damaged, or holds some"):
        minari_source.read(folder)
    assert minari_source.read(folder, on_fault=OnFault.DROP).dataset.num_episodes == 1
    with h5py.File(path, "a") as file:
        del file["episode_1"]
        file["episode_1"] = np.zeros(3)
    with pytest.raises(ValueError, match="no episode whose observations and actions are arrays"):
        minari_source.read(folder)


def test_the_number_of_episodes_may_be_told_in_any_form(write):
    path = write([episode(0, 2)]) / "data" / "main_data.hdf5"
    (path.parent / "metadata.json").unlink()
    for due, fits in ((1, True), (np.array([1, 2]), False), ("abc", False)):
        with h5py.File(path, "a") as file:
            file.attrs["total_episodes"] = due
        if fits:
            assert minari_source.read(path).dataset.num_episodes == 1
        else:
            with pytest.raises(ValueError, match=r"has 1 of the .* episodes of its metadata"):
                minari_source.read(path)
