import numpy as np
import pytest

from rljax import drift


def sample(rows, mean=0.0, seed=0):
    return np.random.default_rng(seed).normal(mean, 1.0, (rows, 3))


def test_mmd_by_hand():
    """Points 0, 0 and 1, 1: the median distance is 1, so the kernel between is e^-1."""
    x, y = np.zeros((2, 1)), np.full((2, 1), 0.5)  # scaled by 0.25, so that they are 2 apart
    found = drift.mmd(x, y, permutations=1)
    assert found.mmd2 == pytest.approx(2 - 2 * np.exp(-1))


def test_mmd_by_loops():
    x, y = sample(7), sample(5, 1.0, seed=1)
    both = np.concatenate([x, y]) / np.concatenate([x, y]).std(axis=0)
    apart = [((a - b) ** 2).sum() for i, a in enumerate(both) for b in both[:i]]

    def kernel(a, b):
        return np.exp(-((a - b) ** 2).sum() / np.median(apart))

    x, y = both[:7], both[7:]
    expected = sum(kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / 42
    expected += sum(kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / 20
    expected -= 2 * np.mean([kernel(a, b) for a in x for b in y])
    assert drift.mmd(np.float64(sample(7)), sample(5, 1.0, seed=1)).mmd2 == pytest.approx(expected)


def test_a_shift_is_found_and_none_where_there_is_none():
    assert drift.mmd(sample(100), sample(100, 1.0, seed=1)).p_value < 0.01
    p_values = [
        drift.mmd(sample(30, seed=2 * i), sample(20, seed=2 * i + 1), permutations=50).p_value
        for i in range(60)
    ]
    assert 0.3 < np.mean(p_values) < 0.7  # uniform
    assert np.mean(np.array(p_values) < 0.1) < 0.25


def test_the_scale_of_a_column_does_not_matter():
    x, y = sample(30), sample(30, 0.5, seed=1)
    scale = np.array([[1.0, 1000.0, 0.001]])
    assert drift.mmd(x * scale, y * scale).mmd2 == pytest.approx(drift.mmd(x, y).mmd2)
    constant = np.concatenate([x, np.ones((30, 1))], axis=1)
    assert np.isfinite(drift.mmd(constant, constant).mmd2)


@pytest.mark.parametrize("value", [0.0, 0.1, 100.0])
def test_a_column_that_never_varies_hides_no_shift(value):
    x, y = sample(60), sample(60, 1.0, seed=1)
    column = np.full((60, 1), value)
    found = drift.mmd(np.concatenate([x, column], 1), np.concatenate([y, column], 1))
    assert found.mmd2 == pytest.approx(drift.mmd(x, y).mmd2)
    assert found.p_value < 0.01


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="two rows of each"):
        drift.mmd(sample(1), sample(5))
    with pytest.raises(ValueError, match="not finite"):
        drift.mmd(sample(5), np.full((5, 3), np.nan))
