"""Which agent a dataset's policy should come from: the best that cannot just have been lucky.

Behavior cloning (bc) is what all others must beat: it only repeats the log. The interval decides:
an agent counts as better than bc only if the interval of the difference of their means excludes 0.

Seeds are few, agents several. So the percentile bootstrap over seeds is widened twice: for small
samples, of which a bootstrap underrates the spread (Hesterberg 2015, arXiv:1411.5279), and
for the number of agents that are compared with bc (Bonferroni).
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import special

BASELINE = "bc"
FEWEST_SEEDS = 4  # of three each, luck alone puts all of one above all of the other 1 time in 20
CONFIDENCE = 0.95
_RESAMPLES = 20_000  # the widened tails are thin


@dataclasses.dataclass(frozen=True)
class Result:
    """What one agent reached."""

    values: tuple[float, ...]  # a mean return, or its estimate, for each seed
    log: tuple[float, float] | None = None  # by OPE: what the log leaves open of their mean
    trust: str = "high"  # by OPE: high, low or none


class Difference(NamedTuple):
    """Of the means of two agents, with its interval."""

    ours: str
    theirs: str
    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the numbers say."""

    kept: str | None  # the agent whose policy to take; None: nothing can be said
    sentence: str
    differences: tuple[Difference, ...] = ()  # every agent over bc, then the best over the second


def choose(results: Mapping[str, Result], unit: str = "return") -> Choice:
    """The agent to keep, out of those that have results, and one sentence about it."""
    untrusted = sorted(agent for agent, result in results.items() if result.trust == "none")
    trusted = {agent: result for agent, result in results.items() if agent not in untrusted}
    aside = f" {_listed(untrusted)} left out: not to be trusted by this log." if untrusted else ""
    if BASELINE in untrusted:
        others = ", ".join(agent for agent in untrusted if agent != BASELINE)
        also = f", nor of {others}" if others else ""
        return Choice(
            None,
            f"No best is named: the log tells nothing of {BASELINE}, which all must beat{also} "
            "(trust: none).",
        )
    if BASELINE not in trusted:
        return Choice(None, f"No best is named: {BASELINE}, which all must beat, has no result.")
    # At an equal mean, the simplest.
    ranked = sorted(trusted, key=lambda agent: (-_mean(trusted[agent]), agent != BASELINE))
    others = [agent for agent in ranked if agent != BASELINE]
    if not others:
        return Choice(BASELINE, f"{BASELINE} is kept: nothing was compared with it.{aside}")
    found = {agent: difference(trusted, agent, BASELINE, len(others)) for agent in others}
    best, second = ranked[:2]
    ahead = difference(trusted, best, second, len(others))
    differences = (*found.values(), *(() if BASELINE in (best, second) else (ahead,)))
    few = min(len(result.values) for result in trusted.values())
    better = [agent for agent in others if found[agent].low > 0]
    if best == BASELINE:
        sentence = (
            f"{BASELINE} is best, ahead of {second} by {_told(ahead, unit)}{_doubt(ahead, few)}, "
            "and is kept."
        )
    elif few < FEWEST_SEEDS:
        better = []
        sentence = (
            f"{best} is ahead of {BASELINE} by {_told(found[best], unit)}, but {few} "
            f"{'seed' if few == 1 else 'seeds'} cannot tell that from luck ({FEWEST_SEEDS} may): "
            f"{BASELINE} is kept."
        )
    elif not better:
        sentence = (
            f"{best} is ahead of {BASELINE} by {_told(found[best], unit)}, which may be luck: "
            f"{BASELINE} is kept."
        )
    elif best not in better:
        sentence = (
            f"{best} has the highest mean, but its lead over {BASELINE}, "
            f"{_told(found[best], unit)}, may be luck; {better[0]}'s, "
            f"{_told(found[better[0]], unit)}, is not: {better[0]} is kept."
        )
    else:
        sentence = f"{best} is best: ahead of {BASELINE} by {_told(found[best], unit)}"
        if second != BASELINE:
            sentence += f", and of {second}, the runner-up, by {_told(ahead, unit)}"
            sentence += _doubt(ahead, few)
        sentence += f": {best} is kept."
    kept = BASELINE if best == BASELINE or not better else better[0]
    if trusted[kept].trust == "low":
        aside += f" The log supports the estimate for {kept} poorly (trust: low)."
    return Choice(kept, sentence + aside, differences)


def difference(
    results: Mapping[str, Result], ours: str, theirs: str, comparisons: int = 1
) -> Difference:
    """Of means, with the interval over seeds, and over what the log leaves open where it does.

    `comparisons` is the number of such intervals that shall all hold at once.
    """
    mine, other = results[ours], results[theirs]
    value = _mean(mine) - _mean(other)
    count = min(len(mine.values), len(other.values))
    if count < 2:  # no spread is known
        return Difference(ours, theirs, value, -math.inf, math.inf)
    rng, means = np.random.default_rng(0), []
    for result in (mine, other):
        values = np.array(result.values, float)
        means.append(values[rng.integers(len(values), size=(_RESAMPLES, len(values)))].mean(axis=1))
    tail = (1 - widened(1 - (1 - CONFIDENCE) / comparisons, count)) / 2
    low, high = np.quantile(means[0] - means[1], [tail, 1 - tail])
    if mine.log and other.log:  # one log, many seeds: its own noise is the same for all of them
        low = min(float(low), mine.log[0] - other.log[1])
        high = max(float(high), mine.log[1] - other.log[0])
    return Difference(ours, theirs, value, float(low), float(high))


def widened(confidence: float, seeds: int) -> float:
    """The nominal confidence of a percentile bootstrap that covers as Student's interval does.

    Of the difference of two means of `seeds` numbers each, 2 at least: 1 - 2 Φ(-√(n/(n-1)) t),
    with t of 2n - 2 degrees of freedom.
    """
    t = special.stdtrit(2 * seeds - 2, 1 - (1 - confidence) / 2)
    return float(1 - 2 * special.ndtr(-math.sqrt(seeds / (seeds - 1)) * t))


def _mean(result: Result) -> float:
    return statistics.mean(result.values)


def _doubt(ahead: Difference, seeds: int) -> str:
    return " (which may be luck)" if ahead.low <= 0 or seeds < FEWEST_SEEDS else ""


def _told(found: Difference, unit: str) -> str:
    if math.isinf(found.low):
        return f"{found.value:,.4g} {unit}"
    return f"{found.value:,.4g} {unit} [{found.low:,.4g}, {found.high:,.4g}]"


def _listed(names: list[str]) -> str:
    verb = "is" if len(names) == 1 else "are"
    return f"{', '.join(names)} {verb}"
