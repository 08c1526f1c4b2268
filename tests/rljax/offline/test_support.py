"""Which choices the data support: by hand, at the limits, and under masks."""

import jax.numpy as jnp
import numpy as np
import pytest

from rljax import distributions
from rljax.offline import support

PROBABILITIES = jnp.array([[0.05, 0.15, 0.3, 0.5]])


def supported(threshold, mask=None):
    mask = None if mask is None else jnp.array([mask])
    behavior = distributions.categorical(jnp.log(PROBABILITIES), mask)
    return support.supported(behavior, threshold, mask)[0].tolist()


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.0, [True, True, True, True]),
        (0.2, [False, True, True, True]),  # of 0.5: 0.1
        (0.5, [False, False, True, True]),  # 0.25
        (1.0, [False, False, False, True]),
    ],
)
def test_actions_are_compared_with_the_likeliest(threshold, expected):
    assert supported(threshold) == expected


def test_the_likeliest_is_that_of_the_allowed_actions():
    mask = [True, True, False, False]
    assert supported(0.2, mask) == [True, True, False, False]  # of 0.15: 0.03
    assert supported(0.5, mask) == [False, True, False, False]  # 0.075
    assert supported(0.0, mask) == mask


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_a_mask_that_forbids_all_allows_all(threshold):
    assert supported(threshold, [False] * 4) == [True] * 4


def test_there_is_always_something_to_choose():
    behavior = distributions.categorical(jnp.zeros((3, 4)))
    assert np.asarray(support.supported(behavior, 1.0, None)).all()
