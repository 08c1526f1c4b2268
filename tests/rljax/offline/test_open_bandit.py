import gzip
import json

import numpy as np
import pytest

from rljax.offline import open_bandit
from rljax.offline.schema import OnFault, Rules
from rljax.types import Discrete

HEADER = (
    ",timestamp,item_id,position,click,propensity_score,user_feature_0,user_feature_1,"
    "user-item_affinity_0,user-item_affinity_1"
)
ROWS = [
    "0,2019-11-24,1,3,0,0.25,a,x,0.0,2.0",
    "1,2019-11-24,0,1,1,0.5,b,x,1.0,0.0",
]
ITEMS = ",item_id,item_feature_0,item_feature_1\n0,1,-0.5,u\n1,0,0.75,v\n"


@pytest.fixture
def campaign(tmp_path):
    def write(rows, name="men"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "men.csv").write_text("\n".join([HEADER, *rows]) + "\n")
        (folder / "item_context.csv").write_text(ITEMS)
        return folder

    return write


def test_rows_by_hand(campaign):
    made, counts, _ = open_bandit.read(campaign(ROWS))
    assert counts == {"rows": 2}
    assert made.spec.action == Discrete(2)
    # place one-hot, user_feature_0 in {a, b}, user_feature_1 in {x}, two affinities
    np.testing.assert_array_equal(
        made.rows.observation.features[::2], [[0, 0, 1, 1, 0, 1, 0, 2], [1, 0, 0, 0, 1, 1, 1, 0]]
    )
    np.testing.assert_array_equal(made.rows.action[::2], [1, 0])
    np.testing.assert_array_equal(made.rows.reward[::2], [0, 1])
    np.testing.assert_array_equal(made.rows.discount[::2], [0, 0])
    np.testing.assert_array_equal(made.rows.extras["position"][::2], [2, 0])
    np.testing.assert_allclose(made.rows.extras["log_prob"][::2], np.log([0.25, 0.5]), rtol=1e-6)


def test_item_features_are_in_the_order_of_the_items(campaign):
    features = open_bandit.item_features(campaign(ROWS))
    np.testing.assert_array_equal(features, np.float32([[0.75, 0, 1], [-0.5, 1, 0]]))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("0.25", "", "propensity is nan"),
        ("0.25", "1.5", "the propensity 1.5 is no probability"),
        (",3,0,", ",4,0,", "position is '4', not one of 1, 2 and 3"),
        (",1,3,", ",2,3,", "the action 2 is not from 0 to 1"),
        (",3,0,", ",3,2,", "click is '2', neither 0 nor 1"),
        ("0,2019", "1,2019", "the row number 1 is there twice"),
        ("0.0,2.0", "0.0", "it has 9 cells, and the header 10"),
        ("0.0,2.0", "0.0,much", "something that is not a finite number"),
    ],
)
def test_faults_name_the_line(campaign, old, new, told):
    folder = campaign([ROWS[1], ROWS[0].replace(old, new)])
    with pytest.raises(ValueError, match=rf"men\.csv, line 3: .*{told}"):
        open_bandit.read(folder)
    made, counts, _ = open_bandit.read(folder, Rules(OnFault.DROP))
    assert made.num_episodes == 1
    assert counts["episodes_dropped"] == 1


def test_logs_that_are_compared_share_a_vocabulary(campaign):
    first = campaign(ROWS, "first")
    second = campaign([ROWS[0].replace(",a,", ",c,")], "second")
    words = open_bandit.vocabulary(first, second)
    assert words == {"user_feature_0": ("a", "b", "c"), "user_feature_1": ("x",)}
    wide = open_bandit.read(second, vocabulary=words).dataset
    np.testing.assert_array_equal(wide.rows.observation.features[0], [0, 0, 1, 0, 0, 1, 1, 0, 2])
    with pytest.raises(
        ValueError,
        match="line 2: user_feature_0 is 'c', which the log that was learned from does not have",
    ):
        open_bandit.read(second, vocabulary=open_bandit.vocabulary(first))


def test_a_folder_without_a_log_is_told(campaign, tmp_path):
    folder = campaign(ROWS)
    (folder / "women.csv").write_text(HEADER)
    with pytest.raises(ValueError, match=r"must hold one log .* it holds 2"):
        open_bandit.read(folder)
    with pytest.raises(ValueError, match="it holds 0"):
        open_bandit.read(tmp_path)


def test_a_zipped_log_cut_short_is_told(campaign):
    folder = campaign(ROWS * 50)
    packed = gzip.compress((folder / "men.csv").read_bytes())
    (folder / "men.csv").unlink()
    (folder / "men.csv.gz").write_bytes(packed[:-20])
    with pytest.raises(ValueError, match="cut short or damaged"):
        open_bandit.read(folder)


@pytest.mark.parametrize(("policy", "campaign"), [("bts", "men"), ("random", "men")])
def test_the_real_logs_give_the_reference_estimates(shared_data, policy, campaign):
    root = shared_data("open_bandit")
    made, counts, _ = open_bandit.read(root / policy / campaign)
    assert counts == {"rows": 10_000}
    items = 34 if campaign == "men" else 80
    assert made.spec.action == Discrete(items)
    assert open_bandit.item_features(root / policy / campaign).shape[0] == items
    reference = json.loads((root / "reference" / "obp_reference.json").read_text())[campaign]
    steps = made.rows.valid
    action, reward = made.rows.action[steps], made.rows.reward[steps]
    position = made.rows.extras["position"][steps].astype(int)
    chance = np.exp(made.rows.extras["log_prob"][steps].astype(np.float64))
    if policy == "bts":
        target, told = np.full(10_000, 1 / items), reference["bts->random"]
    else:
        policy_of = np.load(root / "reference" / "bts_action_dist.npz")[campaign]
        target, told = policy_of[action, position], reference["random->bts"]
    weight = target / chance
    np.testing.assert_allclose(np.mean(weight * reward), told["ipw"], rtol=1e-5)
    np.testing.assert_allclose(np.mean(reward), told["on_policy_of_log"], rtol=1e-6)
    np.testing.assert_allclose(weight.max(), told["iw_max"], rtol=1e-5)


def test_a_quote_takes_no_other_lines_along(campaign):
    rows = [*ROWS, "", "2,2019-11-24,0,1,1,0.5,b,x,1.0,0.0", '3,2019-11-24,"0,1,0,0.5,b,x,1.0,0.0']
    rows += ["4,2019-11-24,0,1,0,0.5,b,x,1.0,0.0", '5,2019-11-24,"0,1,0,0.5,b,x,1.0,0.0']
    folder = campaign(rows)
    with pytest.raises(ValueError, match=r"men\.csv, line 6: it has 3 cells"):
        open_bandit.read(folder)
    read = open_bandit.read(folder, Rules(on_fault=OnFault.DROP))
    assert (read.dataset.num_episodes, read.counts["rows_dropped"]) == (4, 2)
    assert read.dataset.spec == open_bandit.read(campaign(ROWS)).dataset.spec  # no "" in it


def test_a_wild_cell_a_mark_at_the_start_and_two_columns_of_a_name(campaign):
    folder = campaign([ROWS[0], '1,"' + 200_000 * "x"])
    with pytest.raises(ValueError, match=r"men\.csv, line 3: it has 0 cells"):
        open_bandit.read(folder)
    log = campaign([*ROWS, ROWS[0]]) / "men.csv"
    log.write_text("\ufeff" + log.read_text())
    with pytest.raises(ValueError, match="line 4: the row number 0 is there twice"):
        open_bandit.read(log.parent)
    log.write_text(log.read_text().replace("user_feature_1", "user_feature_0", 1))
    with pytest.raises(ValueError, match="two columns 'user_feature_0'"):
        open_bandit.read(log.parent)
