"""The versions of a model: polling its base path, loading, swapping, letting go.

As TensorFlow Serving with its default policies (sources/storage_path/
file_system_storage_path_source.cc, core/availability_preserving_policy.h): the largest numbered
child of the base path is served; a new version is loaded before the old one is let go, and the last
one is never let go. Requests that run on an old version finish on it. Two things are kinder here:
while the newest version does not load, the next lower one that does is served, also at start-up;
and a version that failed is tried again once its files change.
"""

import dataclasses
import enum
import logging
import pathlib
import threading
import weakref
from collections.abc import Callable

from serving.signatures import Servable
from serving.status import Code, ServingError

_log = logging.getLogger(__name__)
_MAX_VERSION = 2**63 - 1
_Fingerprint = tuple[tuple[str, int, int], ...]


class State(enum.IntEnum):
    """Stages of a version's life; numbers of `ModelVersionStatus.State`."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """What GetModelStatus reports; END with another code than OK is a failed load."""

    version: int
    state: State
    code: Code = Code.OK
    message: str = ""


class Versions:
    """The versions of one model under its base path; `poll` looks for changes.

    One thread polls; any thread asks.
    """

    def __init__(
        self, name: str, base_path: pathlib.Path, load: Callable[[pathlib.Path], Servable]
    ):
        """`load` turns a version directory into a Servable, or raises ServingError."""
        self.name = name
        self.base_path = base_path
        self._load = load
        # Over the two below. Reentrant, as `_end` runs wherever a servable's last reference goes.
        self._lock = threading.RLock()
        self._statuses: dict[int, VersionStatus] = {}
        self._servables: dict[int, Servable] = {}
        self._failed: dict[int, _Fingerprint] = {}  # only of the polling thread
        self._warned = False

    def get(self, version: int | None = None) -> tuple[int, Servable]:
        """An available version, the largest by default.

        Raises:
            ServingError: NOT_FOUND, in TensorFlow Serving's words.
        """
        with self._lock:
            number = max(self._servables, default=None) if version is None else version
            if number is not None and number in self._servables:
                return number, self._servables[number]
        raise servable_not_found(self.name, version)

    def available(self) -> bool:
        """Whether there is anything to serve."""
        return bool(self._servables)

    def statuses(self) -> list[VersionStatus]:
        """Every version seen so far, newest first."""
        with self._lock:
            return sorted(self._statuses.values(), key=lambda status: -status.version)

    def poll(self) -> None:
        """Brings what is served in line with the base path; returns when that is done."""
        found = self._find()
        self._failed = {v: files for v, files in self._failed.items() if v in found}
        for version in sorted(found, reverse=True):
            if version in self._servables or self._try_to_load(version, found[version]):
                for other in [v for v in self._servables if v != version]:
                    self._unload(other)
                return

    def _find(self) -> dict[int, pathlib.Path]:
        try:
            children = sorted(self.base_path.iterdir())
        except OSError as error:
            self._warn_once(f"Could not find base path {self.base_path}: {error.strerror}")
            return {}
        found: dict[int, pathlib.Path] = {}
        for path in children:
            if not (path.name.isascii() and path.name.isdecimal() and path.is_dir()):
                continue
            version = int(path.name)
            if version <= _MAX_VERSION:
                if version in found:
                    _log.warning("%s and %s are the same version", found[version], path)
                found[version] = path
        if found:
            self._warned = False
        else:
            self._warn_once(
                f"No versions of servable {self.name} found under base path {self.base_path}. "
                "Did you forget to name your leaf directory as a number (eg. '/1/')?"
            )
        return found

    def _warn_once(self, message: str) -> None:
        if not self._warned:
            _log.warning(message)
        self._warned = True

    def _try_to_load(self, version: int, path: pathlib.Path) -> bool:
        files = _fingerprint(path)
        if self._failed.get(version) == files:
            return False
        self._set(VersionStatus(version, State.LOADING))
        try:
            servable = self._load(path)
        except ServingError as error:
            self._failed[version] = files
            self._set(VersionStatus(version, State.END, error.code, error.message))
            _log.error("Loading %s version %d failed: %s", self.name, version, error)
            return False
        self._failed.pop(version, None)
        with self._lock:
            self._servables[version] = servable
            self._statuses[version] = VersionStatus(version, State.AVAILABLE)
        _log.info("Loaded %s version %d", self.name, version)
        return True

    def _unload(self, version: int) -> None:
        with self._lock:
            servable = self._servables.pop(version)
            self._statuses[version] = VersionStatus(version, State.UNLOADING)
        # Requests in flight hold it; when the last one lets go, it ends.
        weakref.finalize(servable, self._end, version).atexit = False

    def _end(self, version: int) -> None:
        with self._lock:
            if self._statuses[version].state is State.UNLOADING:  # not loaded again since
                self._statuses[version] = VersionStatus(version, State.END)
        _log.info("Unloaded %s version %d", self.name, version)

    def _set(self, status: VersionStatus) -> None:
        with self._lock:
            self._statuses[status.version] = status


def servable_not_found(name: str, version: int | None) -> ServingError:
    """TensorFlow Serving's answer for a model or version that is not available."""
    which = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return ServingError(Code.NOT_FOUND, f"Servable not found for request: {which}")


def _fingerprint(path: pathlib.Path) -> _Fingerprint:
    try:
        stats = [(str(p), p.stat()) for p in sorted(path.rglob("*"))]
    except OSError:  # a file went away while we looked: whatever comes next is a change
        return ()
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)
