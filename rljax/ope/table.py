"""All estimators side by side, with intervals and a verdict."""

import functools
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from rljax.metrics import plots
from rljax.ope import (
    bandit,
    diagnostics,
    doubly_robust,
    importance,
    intervals,
    marginal,
    weighted,
)
from rljax.ope import trajectories as trajectories_lib
from rljax.ope import visits as visits_lib
from rljax.ope.bandit import Events
from rljax.ope.diagnostics import Verdict
from rljax.ope.intervals import Estimate, Resampled
from rljax.ope.trajectories import Trajectories
from rljax.ope.weighted import WeightedMeans

_BIASED = {  # by what no resampling of the log can show, so there is no interval that holds
    "dm": "no interval: the model's error is unknown",
    "dice": "no interval: the error of the ratios is unknown",
    "magic": "no interval: the model's error is unknown, and the choice of the blend",
    "ipw-clip": "no interval: weights were cut",
    "switch-dr": "no interval: for some weights the model stands in, whose error is unknown",
    "dr-os": "no interval: for part of the weights the model stands in, whose error is unknown",
}


class Bootstrap(NamedTuple):
    """How intervals are made."""

    confidence: float = 0.95
    resamples: int = 1000
    seed: int = 0


class Report(NamedTuple):
    """What is known of a policy's value, the discounted return per episode."""

    estimates: tuple[Estimate, ...]
    logged: Estimate  # what the behavior policy earned
    verdict: Verdict
    num_episodes: int
    effective_size: float  # of whole episodes; 0 where no weight is above 0 or one is infinite
    largest_share: float
    confidence: float


def evaluate(
    trajectories: Trajectories,
    *,
    state: Int[np.ndarray, "E T"] | None = None,
    visits: Float[np.ndarray, "E T"] | None = None,
    uncovered: Float[np.ndarray, "E T"] | None = None,
    caveats: Sequence[str] = (),
    bootstrap: Bootstrap | None = None,
) -> Report:
    """Importance sampling in four kinds; with a model DM, DR, WDR and MAGIC; with `state` MIS.

    With `visits` DICE. An estimator that cannot answer has None and says why. DM, MAGIC and DICE
    have no interval: one by resampling would leave out the error of what was learned. The verdict
    compares them with the others.

    Args:
        trajectories: what was logged; with `q` and `v` for the estimators that use a model.
        state: number of the state of each step, where states are countable.
        visits: how much more often π is in the state of each step than the log, by `dice`.
        uncovered: `diagnostics.uncovered_mass` of each step, for the verdict.
        caveats: likewise, in words.
        bootstrap: of the intervals.
    """
    bootstrap = bootstrap or Bootstrap()
    makers: dict[str, Callable[[], WeightedMeans]] = {
        "is": lambda: importance.importance_sampling(trajectories),
        "wis": lambda: importance.weighted_importance_sampling(trajectories),
        "pdis": lambda: importance.per_decision(trajectories),
        "wpdis": lambda: importance.weighted_per_decision(trajectories),
    }
    if trajectories.v is not None or trajectories.first_value is not None:
        makers["dm"] = lambda: doubly_robust.direct_method(trajectories)
    if trajectories.q is not None and trajectories.v is not None:
        makers["dr"] = lambda: doubly_robust.doubly_robust(trajectories)
        makers["wdr"] = lambda: doubly_robust.weighted_doubly_robust(trajectories)
        makers["magic"] = lambda: doubly_robust.magic(trajectories, seed=bootstrap.seed).means
    if visits is not None:
        makers["dice"] = lambda: visits_lib.marginalized_ratios(trajectories, visits)
    rows = _rows(makers, bootstrap)
    caveats = (*caveats, *_skewed(makers, rows))
    if state is not None:
        resampled = functools.partial(marginal.resampled, trajectories, state)
        prepare = {"mis": lambda: (resampled, trajectories.num_episodes)}
        rows += _estimated(prepare, bootstrap, {})
    return _report(trajectories, rows, uncovered, caveats, bootstrap)


def evaluate_events(
    events: Events,
    *,
    clip: float = 10.0,
    switch: float = 10.0,
    shrinkage: float = 100.0,
    uncovered: Float[np.ndarray, " N"] | None = None,
    caveats: Sequence[str] = (),
    bootstrap: Bootstrap | None = None,
) -> Report:
    """The same for a contextual bandit: IPW, clipped and self-normalized; with a model DM and DR.

    Where weights are cut or shrunken there is no interval: what that adds is unknown.

    Args:
        events: what was logged; with `q` and `v` for the estimators that use a model.
        clip: largest weight of clipped IPW.
        switch: the weight above which Switch-DR trusts the model.
        shrinkage: λ of DR with optimistic shrinkage.
        uncovered: `diagnostics.uncovered_mass` of each event, for the verdict.
        caveats: likewise, in words.
        bootstrap: of the intervals.
    """
    bootstrap = bootstrap or Bootstrap()
    makers: dict[str, Callable[[], WeightedMeans]] = {
        "ipw": lambda: bandit.ipw(events),
        f"ipw-clip({clip:g})": lambda: bandit.ipw(events, clip),
        "snipw": lambda: bandit.snipw(events),
    }
    heaviest = np.exp(min(float(events.log_ratio.max()) - bandit.ROUNDING, 700.0))
    honest = {f"ipw-clip({clip:g})"} if heaviest <= clip else set()
    honest |= {f"switch-dr({switch:g})"} if heaviest <= switch else set()
    if events.q is not None and events.v is not None:
        makers["dm"] = lambda: bandit.dm(events)
        makers["dr"] = lambda: bandit.dr(events)
        makers["sndr"] = lambda: bandit.sndr(events)
        makers[f"switch-dr({switch:g})"] = lambda: bandit.switch_dr(events, switch)
        makers[f"dr-os({shrinkage:g})"] = lambda: bandit.dr_os(events, shrinkage)
    rows = _rows(makers, bootstrap, honest)
    caveats = (*caveats, *_skewed(makers, rows))
    column = None if uncovered is None else uncovered[:, None]
    return _report(bandit.as_trajectories(events), rows, column, caveats, bootstrap)


def to_json(report: Report) -> dict[str, Any]:
    """Plain dictionaries, lists, strings, finite numbers and None."""
    return {
        **report._asdict(),
        "estimates": [row._asdict() for row in report.estimates],
        "logged": report.logged._asdict(),
        "verdict": {"trust": report.verdict.trust, "reasons": list(report.verdict.reasons)},
    }


def forest_plot(report: Report, output: pathlib.Path) -> None:
    """A PNG: a line per estimator with its interval; dashed, what the log itself earned.

    Estimates whose error is unknown have no line.
    """
    rows = [(row, row.value) for row in report.estimates if row.value is not None]
    height = 1.2 + 0.3 * max(1, len(rows))
    figure = Figure(figsize=(6.4, height), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for place, (row, value) in enumerate(rows):
        if row.low is not None and row.high is not None:
            axes.hlines(place, row.low, row.high, color="C0", linewidth=1.5)
        axes.plot([value], [place], color="C0", marker="s", markersize=4)
    if report.logged.value is not None:
        axes.axvline(report.logged.value, color="gray", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), [row.name for row, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"discounted return per episode, {100 * report.confidence:g} % intervals")
    axes.set_title(f"trust: {report.verdict.trust}", fontsize="medium")
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    plots.save(figure, output)


def _rows(
    makers: Mapping[str, Callable[[], WeightedMeans]],
    bootstrap: Bootstrap,
    honest: Collection[str] = (),
) -> list[Estimate]:
    """An estimate each; `honest` are those that are not biased here, though they may be."""

    def prepared(make: Callable[[], WeightedMeans]) -> tuple[Resampled, int]:
        means = make()
        weighted.estimate(means)  # which refuses what has no weight
        return functools.partial(weighted.resampled, means), len(means.value)

    notes = {name: "" if name in honest else _BIASED.get(name.split("(")[0], "") for name in makers}
    prepare = {name: functools.partial(prepared, make) for name, make in makers.items()}
    return _estimated(prepare, bootstrap, notes)


def _estimated(
    prepare: Mapping[str, Callable[[], tuple[Resampled, int]]],
    bootstrap: Bootstrap,
    biased: Mapping[str, str],
) -> list[Estimate]:
    """All from the same resamples of the same trajectories; none of those that are biased."""
    rows: dict[str, Estimate] = {}
    resampled: dict[str, Resampled] = {}
    num = 0
    for name, make in prepare.items():
        try:
            estimate, num = make()
            value = float(estimate(np.ones((1, num)))[0])
        except ValueError as error:
            rows[name] = Estimate(name, None, note=str(error))
            continue
        rows[name] = Estimate(name, value, note=biased.get(name, ""))
        if not rows[name].note:
            resampled[name] = estimate
    found = intervals.bootstrap_each(list(resampled.values()), num, **bootstrap._asdict())
    for name, interval in zip(resampled, found, strict=True):
        low, high = interval or (None, None)
        rows[name] = rows[name]._replace(low=low, high=high)
    return list(rows.values())


def _skewed(
    makers: Mapping[str, Callable[[], WeightedMeans]], rows: Sequence[Estimate]
) -> list[str]:
    """A reason where an interval is too short, for the worst of them."""
    due = {}
    for row in rows:
        if row.low is not None:
            added = weighted.contributions(makers[row.name]())
            due[row.name] = diagnostics.episodes_for_skewness(added), len(added)
    if not due:
        return []
    name, (needed, num) = max(due.items(), key=lambda each: each[1][0])
    if needed <= num:
        return []
    return [
        f"the interval of {name} is too short: what single returns add to it is so skewed that "
        f"{needed:,.0f} of them were due, and there are {num:,}"
    ]


def _report(
    trajectories: Trajectories,
    rows: list[Estimate],
    uncovered: Float[np.ndarray, "E T"] | None,
    caveats: Sequence[str],
    bootstrap: Bootstrap,
) -> Report:
    log = weighted.plain(trajectories_lib.returns(trajectories))
    logged = _rows({"log": lambda: log}, bootstrap)[0]
    size = share = 0.0
    if not np.isposinf(trajectories.log_ratio).any():
        log_weight = trajectories_lib.log_weights(trajectories)[:, -1:]
        size = float(diagnostics.effective_sizes(log_weight)[0])
        share = float(diagnostics.largest_shares(log_weight)[0])
    verdict = diagnostics.verdict(trajectories, rows, uncovered, caveats)
    num = trajectories.num_episodes
    return Report(tuple(rows), logged, verdict, num, size, share, bootstrap.confidence)
