"""What the episodes that ended lately were worth: the metrics `episode/*` of every loop."""

import collections

import numpy as np

from rljax.types import Episodes


class Window:
    """Mean return and length over the last rollouts that hold `num_episodes` ended episodes."""

    def __init__(self, num_episodes: int = 100) -> None:
        """Counts from nothing."""
        self._wanted = num_episodes
        self._recent: collections.deque[tuple[int, float, int]] = collections.deque()
        self._ended = 0

    def add(self, episodes: Episodes) -> dict[str, float]:
        """Takes a rollout's totals; gives the means, or nothing before the first episode ended."""
        ended, return_sum, length_sum = (np.asarray(x).item() for x in episodes)
        self._ended += ended
        if ended:
            self._recent.append((ended, return_sum, length_sum))
        count = sum(ended for ended, _, _ in self._recent)
        while self._recent and count - self._recent[0][0] >= self._wanted:
            count -= self._recent.popleft()[0]
        if not count:
            return {}
        return {
            "episode/return_mean": sum(returns for _, returns, _ in self._recent) / count,
            "episode/length_mean": sum(lengths for _, _, lengths in self._recent) / count,
            "episode/count": self._ended,
        }
