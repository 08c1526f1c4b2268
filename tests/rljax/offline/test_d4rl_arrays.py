import numpy as np
import pytest

from rljax.offline import d4rl_arrays
from rljax.offline.schema import OnFault, Rules, Unfinished
from rljax.types import Box, Discrete, EnvSpec

CUT, ENDED = Rules(unfinished=Unfinished.TRUNCATED), Rules(unfinished=Unfinished.TERMINATED)


def flat(**more):
    """Three steps that terminate, three to a time-out; states are 0, 1, 2 and 10, 11, 12."""
    return {
        "observations": np.array([[0.0], [1], [2], [10], [11], [12]]),
        "actions": np.linspace(-1, 1, 6)[:, None],
        "rewards": np.arange(6.0),
        "terminals": np.array([0, 0, 1, 0, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 0, 0, 1], bool),
    } | more


NEXT = np.array([[1.0], [2], [3], [11], [12], [13]])


@pytest.fixture(params=["npz", "hdf5"])
def save(request, tmp_path):
    def write(arrays):
        path = tmp_path / f"data.{request.param}"
        arrays = {name: x for name, x in arrays.items() if x is not None}
        if request.param == "npz":
            np.savez(path, **arrays)
        else:
            h5py = pytest.importorskip("h5py")
            with h5py.File(path, "w") as file:
                for name, x in arrays.items():
                    file[name] = x
                file.create_group("infos")["qpos"] = np.zeros(3)
        return path

    return write


def told(made):
    return [
        (e.observation.features[:, 0].tolist(), e.reward.tolist(), e.terminated)
        for e in made.episodes()
    ]


def test_next_observations_are_what_last_steps_led_to(save):
    made, counts, _ = d4rl_arrays.read(save(flat(next_observations=NEXT)))
    assert told(made) == [
        ([0, 1, 2, 3], [0, 1, 2], True),
        ([10, 11, 12, 13], [3, 4, 5], False),
    ]
    assert counts == {"rows": 6}
    np.testing.assert_array_equal(made.rows.action[made.rows.valid], np.float32(flat()["actions"]))


def test_a_terminal_row_may_name_the_next_episodes_first_state(save):
    # as loaders leave it that take the next row for the next state
    running_on = np.array([[1.0], [2], [10], [11], [12], [13]])
    for more, rules in (({}, Rules()), ({"timeouts": None}, CUT)):
        made = d4rl_arrays.read(save(flat(next_observations=running_on, **more)), rules=rules)
        assert told(made.dataset) == [
            ([0, 1, 2, 10], [0, 1, 2], True),
            ([10, 11, 12, 13], [3, 4, 5], False),
        ]
        assert (made.dataset.rows.discount[:3] == [1, 1, 0]).all()  # so nobody values the 10


def test_a_row_with_both_flags_is_terminal_and_keeps_its_step(save):
    both = np.array([0, 0, 1, 0, 0, 1], bool)
    made = d4rl_arrays.read(save(flat(timeouts=both))).dataset
    assert told(made) == [([0, 1, 2, 2], [0, 1, 2], True), ([10, 11, 12], [3, 4], False)]


def test_without_them_a_time_out_gives_up_its_step(save):
    made, counts, _ = d4rl_arrays.read(save(flat()))
    # never the next episode's 10 behind the terminal
    assert told(made) == [([0, 1, 2, 2], [0, 1, 2], True), ([10, 11, 12], [3, 4], False)]
    assert counts == {"rows": 6, "last_steps_given_up": 1}


def test_an_unfinished_end_is_what_was_chosen(save):
    path = save(flat(timeouts=np.zeros(6, bool)))
    with pytest.raises(ValueError, match="row 6: its episode stops here"):
        d4rl_arrays.read(path)
    made = d4rl_arrays.read(path, rules=CUT).dataset
    assert told(made)[1] == ([10, 11, 12], [3, 4], False)


def test_ends_that_no_array_tells(save):
    arrays = flat(timeouts=None, terminals=np.zeros(6, bool))
    with pytest.raises(ValueError, match="needs timeouts, episode_lengths or next_observations"):
        d4rl_arrays.read(save(arrays), rules=CUT)
    jumps = d4rl_arrays.read(save(arrays | {"next_observations": NEXT}), rules=CUT).dataset
    assert told(jumps) == [
        ([0, 1, 2, 3], [0, 1, 2], False),
        ([10, 11, 12, 13], [3, 4, 5], False),
    ]
    limited = d4rl_arrays.read(save(arrays), rules=CUT, time_limit=3).dataset
    assert told(limited) == [([0, 1, 2], [0, 1], False), ([10, 11, 12], [3, 4], False)]
    terminal = arrays | {"terminals": np.array([0, 1, 0, 0, 0, 0], bool)}
    mixed = d4rl_arrays.read(save(terminal), rules=CUT, time_limit=3).dataset
    # two steps to the terminal, three to the limit, one that is left over and has no next
    assert told(mixed) == [([0, 1, 1], [0, 1], True), ([2, 10, 11], [2, 3], False)]


def test_episode_lengths_cut(save):
    arrays = flat(timeouts=None, terminals=None, episode_lengths=np.array([2, 4]))
    with pytest.raises(ValueError, match="row 2: its episode stops here"):
        d4rl_arrays.read(save(arrays))
    made = d4rl_arrays.read(save(arrays), rules=ENDED).dataset
    assert told(made) == [([0, 1, 1], [0, 1], True), ([2, 10, 11, 12, 12], [2, 3, 4, 5], True)]
    with pytest.raises(ValueError, match="add to its 6 rows; they add to 7"):
        d4rl_arrays.read(save(arrays | {"episode_lengths": np.array([3, 4])}))


def test_next_observations_of_the_middle_must_fit(save):
    wrong = NEXT.copy()
    wrong[1] = 7
    with pytest.raises(ValueError, match="row 2: its next_state is not the state of the next row"):
        d4rl_arrays.read(save(flat(next_observations=wrong)))


@pytest.mark.parametrize(
    ("name", "row", "value", "match"),
    [
        ("rewards", 4, np.nan, "row 5: reward is nan"),
        ("observations", 1, np.inf, "row 2: state .* not a finite number"),
        ("actions", 3, np.nan, "row 4: action .* not a finite number"),
    ],
)
def test_a_fault_names_its_row(save, name, row, value, match):
    arrays = flat()
    arrays[name][row] = value
    path = save(arrays)
    with pytest.raises(ValueError, match=match):
        d4rl_arrays.read(path)
    assert d4rl_arrays.read(path, rules=Rules(OnFault.DROP)).dataset.num_episodes == 1


def test_lengths_and_flags_are_checked(save):
    with pytest.raises(ValueError, match="has 5 actions and 6 rewards"):
        d4rl_arrays.read(save(flat(actions=np.zeros((5, 1)))))
    with pytest.raises(ValueError, match=r"row 1: its terminals is 0.5, neither true nor false"):
        d4rl_arrays.read(save(flat(terminals=np.full(6, 0.5))))
    with pytest.raises(ValueError, match="has the arrays spam; there must be observations"):
        d4rl_arrays.read(save({"spam": np.zeros(3)}))


def test_whole_numbers_are_choices(save):
    made = d4rl_arrays.read(save(flat(actions=np.array([0, 1, 2, 0, 1, 2])[:, None]))).dataset
    assert made.spec.action == Discrete(3)


def test_actions_beyond_the_bounds_are_refused_or_clipped(save):
    path = save(flat(actions=np.array([[0.5], [2], [0], [-3], [1], [0]])))
    spec = EnvSpec("task", (1,), "float32", Box((-1.0,), (1.0,)))
    with pytest.raises(ValueError, match=r"row 2: the action \[2.0\] is outside the bounds"):
        d4rl_arrays.read(path, spec)
    made, counts, _ = d4rl_arrays.read(path, spec, clip_actions=True)
    assert counts["actions_clipped"] == 2
    np.testing.assert_array_equal(
        made.rows.action[made.rows.valid, 0], np.float32([0.5, 1, 0, -1, 1])
    )
    assert d4rl_arrays.read(path).dataset.spec.action == Box((-3.0,), (2.0,))
    with pytest.raises(ValueError, match="clip_actions needs a spec"):
        d4rl_arrays.read(path, clip_actions=True)


def test_a_file_cut_short_is_told(save):
    path = save(flat())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="or is cut short"):
        d4rl_arrays.read(path)


def test_a_single_number_is_no_column(save):
    for name in ("rewards", "terminals"):
        with pytest.raises(ValueError, match=f"has {name} as a single number"):
            d4rl_arrays.read(save(flat(**{name: np.float32(1)})))


def test_pickles_are_not_opened(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, observations=np.array([{}], object), actions=[0], rewards=[0])
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        d4rl_arrays.read(path)


ROLLOUTS = {
    "obs": np.array([[0.0], [1], [2], [10], [11]]),
    "acts": np.array([0, 1, 0]),
    "rews": np.array([1.0, 2, 3]),
    "indices": np.array([2]),
    "terminal": np.array([True, False]),
}


def test_rollouts_keep_final_observations(save):
    made, counts, _ = d4rl_arrays.read(save(ROLLOUTS))
    assert told(made) == [([0, 1, 2], [1, 2], True), ([10, 11], [3], False)]
    np.testing.assert_array_equal(made.rows.action[made.rows.valid], [0, 1, 0])
    assert counts == {"rows": 5}
    limited = d4rl_arrays.read(save(ROLLOUTS), time_limit=2).dataset
    assert told(limited)[0] == ([0, 1, 2], [1, 2], False)
    with pytest.raises(ValueError, match="one observation more in each"):
        d4rl_arrays.read(save(ROLLOUTS | {"obs": np.zeros((4, 1))}))
    with pytest.raises(ValueError, match="its indices split 3 acts into 2 episodes"):
        d4rl_arrays.read(save(ROLLOUTS | {"terminal": np.array([True])}))


def test_door_human(shared_data):
    path = shared_data("hand_dapg_door_human") / "door_human_demos.npz"
    made, counts, _ = d4rl_arrays.read(path, rules=CUT)
    # 25 last steps of 6,729 are given up: nobody kept what they led to
    assert counts == {"rows": 6729, "last_steps_given_up": 25}
    assert (made.num_episodes, made.num_steps) == (25, 6704)
    assert made.spec.observation_shape == (39,)
    assert made.spec.action.shape == (28,)
    arrays = np.load(path)
    np.testing.assert_array_equal(
        made.rows.observation.features, arrays["observations"].astype(np.float32)
    )
    np.testing.assert_array_equal(np.diff(made.starts), arrays["episode_lengths"])


@pytest.mark.parametrize(
    ("task", "limit", "episodes", "steps"),
    [("cartpole", 500, 57, 26964), ("pendulum", 200, 56, 11200)],
)
def test_imitation_rollouts(shared_data, task, limit, episodes, steps):
    path = shared_data("imitation_rollouts") / f"{task}_expert.npz"
    made = d4rl_arrays.read(path, time_limit=limit).dataset
    assert (made.num_episodes, made.num_steps) == (episodes, steps)
    lengths = np.diff(made.starts) - 1
    ended = np.array([episode.terminated for episode in made.episodes()])
    np.testing.assert_array_equal(ended, lengths < limit)
    assert ended.any() == (task == "cartpole")  # Pendulum never terminates
    arrays = np.load(path)
    np.testing.assert_array_equal(made.rows.observation.features, arrays["obs"])
    third = slice(arrays["indices"][1], arrays["indices"][2])
    acts = arrays["acts"][third].reshape(made.episode(2).action.shape)
    np.testing.assert_array_equal(made.episode(2).action, acts)


def test_mujoco_experts(shared_data):
    path = shared_data("cs285_mujoco_expert") / "Hopper-v4.npz"
    made, counts, _ = d4rl_arrays.read(path, rules=CUT)
    # what they recorded as terminal is the time limit of 1,000 steps
    assert counts == {"rows": 2000}
    assert [(len(e.reward), e.terminated) for e in made.episodes()] == [(1000, False)] * 2
    np.testing.assert_array_equal(
        made.episode(0).observation.features[-1],
        np.load(path)["next_observations"][999].astype(np.float32),
    )
    assert min(made.spec.action.low) < -5  # its Gaussian actions were not clipped
    spec = EnvSpec("Hopper-v4", (11,), "float32", Box((-1.0,) * 3, (1.0,) * 3))
    clipped, counts, _ = d4rl_arrays.read(path, spec, CUT, clip_actions=True)
    assert counts["actions_clipped"] > 0
    assert abs(clipped.rows.action).max() == 1


def test_a_limit_beside_what_tells_the_ends_is_refused(save):
    with pytest.raises(ValueError, match="has timeouts, which tell where episodes end"):
        d4rl_arrays.read(save(flat()), time_limit=2)


@pytest.mark.parametrize("lengths", [[2.5, 3.5], [np.nan, 6.0], [7, -1], [2**62] * 4 + [6]])
def test_lengths_are_positive_whole_numbers(save, lengths):
    arrays = flat(timeouts=None, terminals=None, episode_lengths=np.array(lengths))
    with pytest.raises(ValueError, match="its episode_lengths must be"):
        d4rl_arrays.read(save(arrays), rules=ENDED)
