"""Finds out which process of a distributed run was lost, or hangs, and ends this one in a sentence.

Left to itself, a process that has lost another either waits forever in a collective, or is aborted
by JAX with a dump of C++ frames. So each process shows signs of life in the coordinator's key-value
store, and two threads watch those of the others:

    process 1 ends: process 0 (node-a) was lost at step 4,096: start the same command on every
    process again, and it resumes from the last checkpoint.

Time is counted in this process's own beats: one that was itself suspended accuses nobody.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, Protocol, runtime_checkable

EXIT_LOST = 75  # sysexits' EX_TEMPFAIL: try again
_BEATS = 15  # in the time after which a silent process counts as lost
_SUSPICION = 4  # beats that suffice once a collective has failed
_STALL = 30  # times that time: without an update, though every process lives
_RESUME = "start the same command on every process again, and it resumes from the last checkpoint."


@runtime_checkable
class Store(Protocol):
    """The part of JAX's coordination client that is used here."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        """Keeps a value for all processes."""
        ...

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        """All keys below a folder, with their values."""
        ...


class Sign(NamedTuple):
    """What a process shows of itself."""

    beat: int
    step: int  # that its training has come to
    host: str


@dataclasses.dataclass
class _Seen:
    """The last sign of a process, and this process's beat when it came."""

    sign: Sign
    beat: int


class Watch:
    """Two threads: one exchanges signs of life, the other judges them and cannot be held up."""

    def __init__(
        self,
        store: Store,
        index: int,
        count: int,
        timeout_seconds: float,
        end: Callable[[str, int], None] | None = None,
    ) -> None:
        """Starts to watch.

        Args:
            store: of the coordinator, which is process 0.
            index: of this process.
            count: of processes.
            timeout_seconds: after which a process without a sign of life counts as lost.
            end: what is done with the sentence and the exit code; default: print and exit.
        """
        self.index, self.count = index, count
        self.interval = timeout_seconds / _BEATS
        self.resting = False  # while process 0 works alone: nobody is expected to get on
        self._timeout = timeout_seconds
        self._store, self._end = store, end or end_process
        self._step, self._moved, self._beat, self._answered = 0, 0, 0, 0
        self._seen = {process: _Seen(Sign(0, 0, ""), 0) for process in range(count)}
        self._verdict: tuple[str, int] | None = None
        self._suspicious = threading.Event()
        self._stopped = threading.Event()
        self._lock = threading.Lock()  # held for good by the thread that ends the process
        for work in (self._exchange, self._judge):
            threading.Thread(target=work, name=f"peers{work.__name__}", daemon=True).start()

    @property
    def step(self) -> int:
        """That training has come to."""
        return self._step

    def moved(self, step: int) -> None:
        """Training has come to `step`."""
        self._step, self._moved = step, self._beat

    def stop(self) -> None:
        """No more signs, no more judgement: every process has come to its end."""
        self._stopped.set()

    def suspect(self) -> None:
        """A collective failed: waits until it is known who was lost, which ends this process.

        Returns where nobody was: the fault is this process's own.
        """
        self._suspicious.set()
        time.sleep(self.interval * 3 * _SUSPICION)

    def publish(self, sentence: str, code: int) -> None:
        """Tells the others why this process ends; process 0 gives them time to read it."""
        words = json.dumps([f"process {self.index} ended: {sentence}", code])
        self._stopped.set()
        _bounded(lambda: self._store.key_value_set(f"rljax/words/{self.index}", words), 5)
        if self.index == 0:  # the store ends with it
            time.sleep(3 * self.interval)

    def verdict(self) -> tuple[str, int] | None:
        """What is known to have ended the run, if anything: sentence and exit code."""
        return self._verdict

    def _exchange(self) -> None:
        host = socket.gethostname()
        while not self._stopped.wait(self.interval):
            self._beat += 1
            mine = json.dumps(Sign(self._beat, self._step, host))
            try:
                self._store.key_value_set(f"rljax/signs/{self.index}", mine, allow_overwrite=True)
                signs = self._store.key_value_dir_get("rljax/signs/")
                words = self._store.key_value_dir_get("rljax/words/")
            except Exception:  # whatever it was: if it lasts, the coordinator is lost
                continue
            self._answered = self._beat
            for key, value in signs:
                self._note(int(key.rpartition("/")[2]), Sign(*json.loads(value)))
            if words and self._verdict is None:
                sentence, code = json.loads(min(words)[1])
                self._verdict = sentence, code

    def _note(self, process: int, sign: Sign) -> None:
        before = self._seen.get(process)
        if before is None or before.sign.beat != sign.beat:
            self._seen[process] = _Seen(sign, self._beat)

    def _judge(self) -> None:
        silent = 0  # own beats since the coordinator answered
        answered = 0
        while not self._stopped.wait(self.interval):
            silent = 0 if self._answered != answered else silent + 1
            answered = self._answered
            verdict = self._verdict or self._lost(silent) or self._stalled()
            if verdict and not self._stopped.is_set():
                self._conclude(*verdict)

    def _lost(self, silent: int) -> tuple[str, int] | None:
        limit = _SUSPICION if self._suspicious.is_set() else _BEATS
        gone = [p for p, seen in self._seen.items() if self._beat - seen.beat > limit]
        if silent > limit:  # the signs of the others are those that it has
            gone = [0]
        names = [f"{p} ({self._seen[p].sign.host or 'never heard of'})" for p in gone]
        return (_lost_sentence(", ".join(names), self._step), EXIT_LOST) if gone else None

    def _stalled(self) -> tuple[str, int] | None:
        if self.resting:
            self._moved = self._beat
        if self._beat - self._moved <= _STALL * _BEATS:
            return None
        steps = ", ".join(f"{p} at {seen.sign.step:,}" for p, seen in self._seen.items())
        return (
            f"no update ended within {_STALL * self._timeout:g} seconds, though all processes "
            f"live (steps: {steps}): {_RESUME} A longer --peer_timeout waits longer."
        ), EXIT_LOST

    def _conclude(self, sentence: str, code: int) -> None:
        self._lock.acquire()
        self._verdict = sentence, code
        words = json.dumps([sentence, code])
        _bounded(lambda: self._store.key_value_set("rljax/words/verdict", words), 2)
        if self.index == 0:  # the others read it before the store goes
            time.sleep(3 * self.interval)
        self._end(f"process {self.index} ends: {sentence}", code)


def lost_coordinator(step: int) -> str:
    """The sentence for a process that JAX aborts because it lost process 0."""
    return _lost_sentence("0", step)


def end_process(sentence: str, code: int) -> NoReturn:
    """Prints the sentence and exits at once: other threads may never return."""
    for stream in (sys.stdout, sys.stderr):
        _bounded(stream.flush, 1)  # a thread that hangs may hold its lock
    os.write(2, f"{sentence}\n".encode())
    os._exit(code)


def on_abort(speak: Callable[[], None]) -> None:
    """Has `speak` called where C++ code aborts this process; it is to end the process itself.

    JAX aborts where it loses the coordinator, with no exception to catch. Python's own handlers
    run between its instructions only, and there is no next one.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: speak())
    _handlers.append(handler)  # C code holds its address
    c_library = ctypes.CDLL(None)
    c_library.signal.restype = ctypes.c_void_p
    c_library.signal(signal.SIGABRT, handler)


_handlers: list[Any] = []


def reachable(address: str, seconds: float) -> bool:
    """Whether something listens at "host:port"."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds):
            return True
    except OSError:
        return False


def _lost_sentence(who: str, step: int) -> str:
    return f"process {who} was lost, or hangs, at step {step:,}: {_RESUME}"


def _bounded(call: Callable[[], object], seconds: float) -> None:
    """Runs `call`, which may hang or fail, for so long at most."""

    def attempt() -> None:
        with contextlib.suppress(Exception):
            call()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
