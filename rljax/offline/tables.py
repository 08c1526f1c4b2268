"""Files as tables of cells: JSON lines, compressed or not, and Parquet; and as named arrays."""

import bz2
import collections
import dataclasses
import gzip
import importlib
import json
import lzma
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from rljax import config as configs
from rljax.offline.schema import Found, OnFault, Table
from rljax.types import EnvSpec, Part

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_CUT_SHORT = (EOFError, OSError, zlib.error, lzma.LZMAError)
DAMAGED = (OSError, KeyError, RuntimeError)  # what h5py and zipfile find, too
SPEC_KEY = b"rljax.spec"  # of a Parquet file's metadata: its EnvSpec, as JSON
EXTRAS_KEY = b"rljax.extras"  # the columns that are kept beside the steps


def lines(path: str | os.PathLike[str]) -> Iterable[tuple[int, str]]:
    """The lines of a text file with their numbers from 1; .gz, .bz2 and .xz are unpacked.

    Raises:
        ValueError: the file is absent, cut short, or no text.
    """
    path = pathlib.Path(path)
    number = 0
    try:
        opener = _OPENERS.get(path.suffix.lower(), open)
        with opener(path, "rt", encoding="utf-8-sig") as file:  # a mark of byte order is no text
            for number, line in enumerate(file, start=1):
                yield number, line
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}.") from None
    except (*_CUT_SHORT, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}, behind line {number}: the file is cut short or damaged ({error})."
        ) from None


def objects(
    path: str | os.PathLike[str], on_fault: OnFault = OnFault.REFUSE, *, last_wins: bool = False
) -> tuple[list[tuple[int, dict[str, Any]]], collections.Counter[str], tuple[int, ...]]:
    """The objects of a file of JSON lines with their lines; how many lines were dropped, and where.

    The last are numbers of objects, from 0, above which a line was dropped. With `last_wins` an
    object may have a name twice.

    Raises:
        ValueError: a line is no JSON object, the last one perhaps cut short, or has a name twice,
            and faults are refused; or the file cannot be read, or has no line.
    """
    found, counts, unread = [], collections.Counter(), []
    for number, line in lines(path):
        if not line.strip():
            continue
        try:
            read = json.loads(line, object_pairs_hook=dict if last_wins else _once)
            if not isinstance(read, dict):
                raise ValueError
        except (ValueError, RecursionError) as error:
            twice = isinstance(error, _TwiceError)
            if on_fault is OnFault.REFUSE:
                cut = "" if line.endswith("\n") else ": the file is cut short"
                told = str(error) if twice else f"{_start(line)!r} is no JSON object{cut}"
                raise ValueError(f"{path}, line {number}: {told}.") from None
            counts["fault/name twice" if twice else "fault/no JSON object"] += 1
            counts["rows_dropped"] += 1
            unread.append(len(found))
        else:
            found.append((number, read))
    if not found:
        raise ValueError(f"{path} holds no JSON object; one a line would be right.")
    return found, counts, tuple(unread)


def of_objects(
    file: str, found: list[tuple[int, dict[str, Any]]], unread: tuple[int, ...] = ()
) -> Table:
    """A table of objects: its columns are all of their keys, None where one lacks it."""
    names = dict.fromkeys(name for _, row in found for name in row)
    columns = {name: [row.get(name) for _, row in found] for name in names}
    return Table(file, columns, np.array([number for number, _ in found]), unread=unread)


def repeated(name: str, cells: Sequence[Any]) -> Found:
    """The rows whose id stood in one above already; rows without an id repeat none."""
    known: set[str] = set()
    bad = np.zeros(len(cells), bool)
    for row, cell in enumerate(cells):
        if cell not in (None, ""):
            bad[row] = str(cell) in known
            known.add(str(cell))
    return Found(
        "duplicate", bad, lambda row: f"{name} {cells[row]} is there twice: each must be once."
    )


def parquet(path: str | os.PathLike[str]) -> tuple[Table, dict[bytes, bytes]]:
    """A Parquet file, and its metadata; lists of one length become arrays `[N, W]`.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the file is absent, cut short, or none of Parquet.
    """
    pq = optional("pyarrow.parquet")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            read = file.read()  # `read_table` cannot say what is wrong with columns of one name
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}.") from None
    except (OSError, ValueError) as error:  # of pyarrow, ArrowInvalid is a ValueError
        told = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is no Parquet file, or is cut short: {told}") from None
    if not read.num_rows:
        raise ValueError(f"{path} has no row.")
    for name, times in collections.Counter(read.column_names).items():
        if times > 1:
            raise ValueError(f"{path} has {times} columns {name!r}: each must be there once.")
    columns = {name: _cells(read.column(name)) for name in read.column_names}
    numbers = np.arange(1, read.num_rows + 1)
    return Table(str(path), columns, numbers, "row"), dict(read.schema.metadata or {})


def arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, or those at the root of an HDF5 file.

    Raises:
        ImportError: the file is HDF5, and h5py is not installed.
        ValueError: it is absent, cut short, or holds pickled objects, which nobody should open.
    """
    path = pathlib.Path(path)
    damaged = (*_CUT_SHORT, *DAMAGED, zipfile.BadZipFile, ValueError)
    try:
        if path.suffix.lower() == ".npz":
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        h5py = optional("h5py")
        with h5py.File(path, "r") as file:
            return {name: x[()] for name, x in file.items() if isinstance(x, h5py.Dataset)}
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}.") from None
    except damaged as error:
        told = " ".join(str(error).split())[:200]
        kind = "NumPy arrays (.npz)" if path.suffix.lower() == ".npz" else "HDF5"
        raise ValueError(f"{path} is no file of {kind}, or is cut short: {told}") from None


def spec_from_json(file: str, text: str | bytes) -> EnvSpec:
    """The inverse of `spec_to_json`. Raises ValueError that names the file it comes from."""
    try:
        data = json.loads(text)
        # named parts are tuples with names, which `config` does not know
        parts = [Part(name, tuple(shape), dtype) for name, shape, dtype in data["named_parts"]]
        alone = configs.from_json(EnvSpec, data | {"named_parts": []})
        return dataclasses.replace(alone, named_parts=tuple(parts))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: its spec cannot be read: {error}") from None


def spec_to_json(spec: EnvSpec) -> str:
    """What a file keeps of its spec."""
    return json.dumps(configs.to_json(spec))


def optional(name: str) -> Any:
    """A module of the extra `offline`. Raises ImportError that names the extra if it is absent."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"This file format needs {package}: pip install 'rljax[offline]'."
        ) from error


def _cells(column: Any) -> Any:
    """An Arrow column as an array where it has nothing missing, else as a list."""
    pa = optional("pyarrow")

    kind = column.type
    if pa.types.is_floating(kind) and column.null_count:
        column = column.fill_null(float("nan"))  # which no reader takes for a number
    plain = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    if plain and not column.null_count:
        return column.to_numpy()
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)  # finer ones need pandas
        if not column.null_count:
            return column.cast(pa.int64()).to_numpy() / 1e6
    listed = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if any(test(kind) for test in listed) and not column.null_count and len(column):
        return _matrix(column)
    return column.to_pylist()


def _matrix(column: Any) -> Any:
    """Lists as an array `[N, W]` if all have one length and hold numbers or booleans only."""
    pa, pc = optional("pyarrow"), optional("pyarrow.compute")

    lengths = pc.list_value_length(column)
    inner = column.type.value_type
    plain = pa.types.is_floating(inner) or pa.types.is_integer(inner) or pa.types.is_boolean(inner)
    flat = pc.list_flatten(column)
    if not plain or flat.null_count or pc.min(lengths).as_py() != pc.max(lengths).as_py():
        return column.to_pylist()
    return flat.to_numpy().reshape(len(column), -1)


class _TwiceError(ValueError):
    """An object of JSON has a name twice, of which Python's reader would take the last."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        [(name, _)] = collections.Counter(name for name, _ in pairs).most_common(1)
        raise _TwiceError(f"it has {name!r} twice")
    return read


def _start(line: str) -> str:
    line = line.strip()
    return line if len(line) <= 40 else f"{line[:37]}..."
