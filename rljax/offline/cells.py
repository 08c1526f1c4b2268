"""Cells of a log as arrays: numbers, vectors, flags, ids and times, each checked for what it is.

Cells are an array `[N]` or `[N, W]`, or a list of N Python values with None where there is nothing.
Every function marks cells that cannot be read in `Faults`, and puts 0 there (`seconds`: NaN).
`needed`, bool `[N]`, says where there must be something; elsewhere nothing is read.
"""

import collections
import datetime
import itertools
import math
from typing import Any

import numpy as np

from rljax.offline.schema import Faults

_LARGEST = float(np.finfo(np.float32).max)


def numbers(faults: Faults, name: str, cells: Any, needed: np.ndarray) -> np.ndarray:
    """Finite numbers, float64 `[N]`, that float32 can hold."""
    values, fits = _floats(cells), are_numbers(cells)
    faults.find(
        name, needed & ~fits, lambda row: f"{name} is {_show(cells[row])}, not a finite number."
    )
    return np.where(needed & fits, values, 0.0)


def are_numbers(cells: Any) -> np.ndarray:
    """Where `numbers` finds one, bool `[N]`."""
    return np.abs(_floats(cells)) <= _LARGEST  # False for NaN, too


def whole(faults: Faults, name: str, cells: Any, needed: np.ndarray) -> np.ndarray:
    """Whole numbers, int64 `[N]`."""
    if _is_numeric(cells, 1) and cells.dtype.kind in "iu":
        large = needed & (cells > np.iinfo(np.int64).max)  # of 64 bits without a sign
        faults.find(
            name, large, lambda row: f"{name} is {cells[row]}, more than 64 bits with a sign hold."
        )
        return np.where(needed & ~large, cells, 0).astype(np.int64)
    values = np.array([number(cell) for cell in _listed(cells)], np.float64)
    fits = np.isfinite(values) & (np.abs(values) < 2.0**53)
    fits[fits] &= values[fits] == np.floor(values[fits])
    faults.find(
        name, needed & ~fits, lambda row: f"{name} is {_show(cells[row])}, not a whole number."
    )
    return np.where(needed & fits, values, 0.0).astype(np.int64)


def vectors(
    faults: Faults, name: str, cells: Any, needed: np.ndarray, width: int | None = None
) -> np.ndarray:
    """Vectors of finite numbers, float64 `[N, W]`, from lists or from objects of numbers.

    All must have the length that most have, or `width`; objects the keys of most, which are put in
    order: as numbers if all of them are, else as text.
    """
    if _is_numeric(cells, 2):
        if width is not None and cells.shape[1] != width:
            faults.find(name, needed, lambda row: _lengths(name, cells.shape[1], width))
            return np.zeros((len(cells), width))
        values = np.asarray(cells, np.float64)
        fits = (np.abs(values) <= _LARGEST).all(axis=1)
        faults.find(name, needed & ~fits, lambda row: _not_numbers(name, cells[row].tolist()))
        return np.where((needed & fits)[:, None], values, 0.0)
    usual = _usual(cells, needed)
    keys = sorted_keys(usual) if isinstance(usual, frozenset) else None
    size = (len(usual) if isinstance(usual, frozenset) else usual) if width is None else width
    values = _lists(cells, size) if needed.all() and keys is None else None
    if values is not None:
        return values
    values = np.zeros((len(cells), size))
    right_size, fits = np.ones((2, len(cells)), bool)
    for row in np.flatnonzero(needed):
        cell = cells[row]
        if isinstance(cell, dict) and keys is not None and cell.keys() == set(keys):
            cell = [cell[key] for key in keys]
        if not isinstance(cell, list | tuple | np.ndarray) or len(cell) != size:
            right_size[row] = False
            continue
        read = [number(x) for x in (cell.tolist() if isinstance(cell, np.ndarray) else cell)]
        fits[row] = all(abs(x) <= _LARGEST for x in read)
        values[row] = read if fits[row] else 0.0
    if keys is not None:
        told = f"an object with {', '.join(map(str, keys[:8]))}{', ...' * (len(keys) > 8)}"
    elif not size:
        told = f"a list of numbers; columns of lone ones are named as {{{name}: [x, y]}}"
    else:
        told = f"a list of {size} numbers"
    faults.find(name, ~right_size, lambda row: f"{name} is {_show(cells[row])}, not {told}.")
    faults.find(name, ~fits, lambda row: _not_numbers(name, cells[row]))
    return values


def flags(faults: Faults, name: str, cells: Any, needed: np.ndarray) -> np.ndarray:
    """Booleans, bool `[N]`; 0 and 1 will do."""
    if isinstance(cells, np.ndarray) and cells.dtype == bool:
        return cells & needed
    cells = _listed(cells)
    fits = np.array([_is_flag(cell) for cell in cells], bool)
    faults.find(
        name, needed & ~fits, lambda row: f"{name} is {_show(cells[row])}, not true or false."
    )
    return np.array([bool(cell) for cell in cells], bool) & needed & fits


def masks(
    faults: Faults, name: str, cells: Any, needed: np.ndarray, width: int | None
) -> np.ndarray:
    """Masks of allowed actions, bool `[N, A]`, from lists of booleans, or of 0 and 1."""
    if _is_numeric(cells, 2) and np.isin(cells, (0, 1)).all():
        cells = cells.astype(bool)
    if isinstance(cells, np.ndarray) and cells.ndim == 2 and cells.dtype == bool:
        size = (cells.shape[1] or 1) if width is None else width
        faults.find(
            name,
            needed & (cells.shape[1] != size),
            lambda row: _lengths(name, len(cells[row]), size),
        )
        fits = cells.shape[1] == size
        return cells & needed[:, None] if fits else np.zeros((len(cells), size), bool)
    usual = _usual(cells, needed)
    size = (usual if isinstance(usual, int) and usual else 1) if width is None else width
    values, fits = np.zeros((len(cells), size), bool), np.ones(len(cells), bool)
    for row in np.flatnonzero(needed):
        cell = cells[row]
        fits[row] = len_of(cell) == size and all(_is_flag(x) for x in cell)
        values[row] = [bool(x) for x in cell] if fits[row] else False
    faults.find(
        name, ~fits, lambda row: f"{name} is {_show(cells[row])}, not a list of {size} booleans."
    )
    return values


def seconds(faults: Faults, name: str, cells: Any, needed: np.ndarray) -> np.ndarray:
    """Times in seconds, float64 `[N]`: numbers, or ISO 8601."""
    if _is_numeric(cells, 1):
        values = np.asarray(cells, np.float64)
    else:
        values = np.array([_second(cell) for cell in cells], np.float64)
    fits = np.isfinite(values)
    faults.find(
        name,
        needed & ~fits,
        lambda row: f"{name} is {_show(cells[row])}, neither seconds nor a time in ISO 8601.",
    )
    return np.where(needed & fits, values, np.nan)


def ids(faults: Faults, name: str, cells: Any) -> tuple[np.ndarray, list[Any]]:
    """Numbers of the ids by first appearance, int64 `[N]`, and the ids; -1 where there is none."""
    values = _listed(cells)
    fits = np.array([type(value) in (int, str) and value != "" for value in values], bool)
    faults.find(
        name,
        ~fits,
        lambda row: f"{name} is {_show(values[row])}, neither text nor a whole number.",
        alone=True,  # it belongs to no episode
    )
    known: dict[Any, int] = {}
    codes = [
        known.setdefault(x, len(known)) if fit else -1 for x, fit in zip(values, fits, strict=True)
    ]
    return np.array(codes, np.int64), list(known)


def present(cells: Any, count: int) -> np.ndarray:
    """Where there is something, bool `[N]`: neither None nor empty; `cells` may be None."""
    if cells is None:
        return np.zeros(count, bool)
    if isinstance(cells, np.ndarray):
        return np.ones(count, bool)
    return np.array([cell is not None and len_of(cell) > 0 for cell in cells], bool)


def number(cell: Any) -> float:
    """A number as it is; NaN for anything else, text and booleans, too, or if it is too large."""
    if type(cell) not in (int, float):
        return math.nan
    try:
        return float(cell)
    except OverflowError:  # a whole number with hundreds of digits
        return math.nan


def sorted_keys(names: Any) -> list[Any]:
    """Keys or ids in order: as numbers if all of them are, else as text."""
    if all(isinstance(x, int) or (isinstance(x, str) and _is_decimal(x)) for x in names):
        return sorted(names, key=lambda x: (int(x), str(x)))
    return sorted(names, key=str)


def len_of(cell: Any) -> int:
    """Length of a list, an object or an array; 0 of anything else."""
    return len(cell) if isinstance(cell, list | tuple | dict | np.ndarray) else 0


def _usual(cells: Any, needed: np.ndarray) -> int | frozenset[Any]:
    """Length, or keys, of most cells that hold something; of two as frequent, the first one's."""
    found = collections.Counter(
        frozenset(cell) if isinstance(cell, dict) else len_of(cell)
        for cell, due in zip(cells, needed, strict=True)
        if due and len_of(cell)
    )
    return found.most_common(1)[0][0] if found else 0


def _lists(cells: list[Any], size: int) -> np.ndarray | None:
    """Lists of `size` good numbers all at once; None if something is wrong, which takes a look."""
    if not all(type(cell) is list and len(cell) == size for cell in cells):
        return None
    flat = list(itertools.chain.from_iterable(cells))
    if not set(map(type, flat)) <= {int, float}:
        return None
    try:
        values = np.array(flat, np.float64).reshape(len(cells), size)
    except OverflowError:
        return None
    return values if (np.abs(values) <= _LARGEST).all() else None


def _listed(cells: Any) -> list[Any]:
    """Python's own numbers in place of NumPy's."""
    return cells.tolist() if isinstance(cells, np.ndarray) else cells


def _floats(cells: Any) -> np.ndarray:
    """Numbers as float64 `[N]`, NaN for anything else."""
    if _is_numeric(cells, 1):
        return np.asarray(cells, np.float64)
    return np.array([number(cell) for cell in cells], np.float64)


def _is_numeric(cells: Any, ndim: int) -> bool:
    return isinstance(cells, np.ndarray) and cells.ndim == ndim and cells.dtype.kind in "iuf"


def _second(cell: Any) -> float:
    if isinstance(cell, str):
        if len(cell) > 8 and _is_decimal(cell):  # a count of milliseconds; dates have eight digits
            return math.nan
        try:
            cell = datetime.datetime.fromisoformat(cell)
        except ValueError:
            return math.nan
    if isinstance(cell, datetime.datetime):
        return (cell if cell.tzinfo else cell.replace(tzinfo=datetime.UTC)).timestamp()
    return number(cell)


def _is_flag(cell: Any) -> bool:
    return isinstance(cell, bool | int | np.bool_ | np.integer) and cell in (0, 1)


def _is_decimal(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _not_numbers(name: str, cell: Any) -> str:
    return f"{name} is {_show(cell)}, which holds something that is not a finite number."


def _lengths(name: str, found: int, due: int) -> str:
    return f"{name} is a list of {found}, not of {due}."


def _show(cell: Any) -> str:
    if cell is None:
        return "missing"
    text = repr(cell.item() if isinstance(cell, np.generic) else cell)
    return text if len(text) <= 60 else f"{text[:57]}..."
