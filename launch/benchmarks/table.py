"""Results of a benchmark: as JSON, as an aligned table, as Markdown.

python -m launch.benchmarks.table runs/benchmarks/ppo.json     prints the tables of a page
"""

import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rljax.config import UsageError

_LESS_IS_BETTER = frozenset({"s", "ms", "GB"})
_COLUMNS = ("", "value", "unit", "peer", "its value", "ratio")


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure, and the same figure of a peer."""

    name: str  # "group/noun"
    value: float  # the median of `samples`, where there are any
    unit: str
    settings: dict[str, Any]  # rows with equal settings make one table
    peer: str | None = None
    peer_value: float | None = None
    samples: tuple[float, ...] = ()  # one per timed window, or per seed
    interval: tuple[float, float] | None = None  # 95 % of `value`, where it is known

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer, whatever the unit; None without a peer."""
        if self.peer_value is None:
            return None
        if self.unit in _LESS_IS_BETTER or max(self.value, self.peer_value) < 0:  # costs
            return self.peer_value / self.value
        return self.value / self.peer_value


def to_json(row: Row) -> dict[str, Any]:
    """The row with its ratio, as it stands in a report's "rows"."""
    return {**dataclasses.asdict(row), "samples": list(row.samples), "ratio": row.ratio}


def from_json(report: dict[str, Any]) -> list[Row]:
    """The rows of a report. Raises UsageError where they are not as `to_json` wrote them."""
    names = [field.name for field in dataclasses.fields(Row) if field.name != "interval"]
    rows = []
    try:
        for row in report["rows"]:
            fields: dict[str, Any] = {name: row[name] for name in names}
            fields["samples"] = tuple(fields["samples"])
            interval = row.get("interval")  # reports of before 2026-11-21 have none
            rows.append(Row(**fields, interval=tuple(interval) if interval else None))
    except (KeyError, TypeError) as error:
        raise UsageError(f"this is no report of a benchmark: {error} is missing.") from error
    return rows


def title(settings: Mapping[str, Any]) -> str:
    """The settings in one line, as they stand above their table."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def line(row: Row) -> str:
    """One figure in one line."""
    name, value, unit, peer, _, ratio = _cells(row)
    within = f" [{_number(row.interval[0])}, {_number(row.interval[1])}]" if row.interval else ""
    return f"{name}: {value}{within} {unit}" + (f", {ratio} times {peer}" if peer else "")


def aligned(rows: Sequence[Row]) -> str:
    """Tables for a terminal, one for each run of rows with equal settings."""
    return "\n\n".join(f"{title}\n\n" + "\n".join(_padded(lines)) for title, lines in _tables(rows))


def markdown(rows: Sequence[Row]) -> str:
    """The same tables for a page."""
    pages = []
    for heading, (header, *lines) in _tables(rows):
        rule = ["---" if column in ("", "unit", "peer") else "---:" for column in _COLUMNS]
        cells = [header, rule, *lines]
        pages.append(f"{heading}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in cells))
    return "\n\n".join(pages)


def _tables(rows: Sequence[Row]) -> Iterator[tuple[str, list[Sequence[str]]]]:
    for settings, group in itertools.groupby(rows, key=lambda row: row.settings):
        yield title(settings), [_COLUMNS, *(_cells(row) for row in group)]


def _cells(row: Row) -> tuple[str, ...]:
    peer = (row.peer or "", _number(row.peer_value), _number(row.ratio))
    return (row.name, _number(row.value), row.unit, *peer)


def _number(value: float | None) -> str:
    """Three digits or more: 0.0123, 1.23, 12.3, 123, 12,345."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if value else "0"


def _padded(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = {0, 2, 3}  # texts; the others are numbers
    return [
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a report's tables as Markdown; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if len(arguments) != 1 or arguments[0].startswith("-"):
            raise UsageError("one argument is needed: the file that launch.benchmark wrote.")
        path = pathlib.Path(arguments[0])
        try:
            report = json.loads(path.read_text())
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UsageError(f"{path} cannot be read as JSON: {error}.") from error
        print(markdown(from_json(report)))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
