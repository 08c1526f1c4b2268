"""Joins requests that arrive together into one run of the model.

Requests are collected for one tick of the event loop: alone, a request waits for nobody; under load
those that came in while the model ran make up the next batch.
"""

import asyncio
import dataclasses
from collections.abc import Mapping

import numpy as np

from serving import signatures
from serving.signatures import Servable
from serving.status import invalid

_Key = tuple[int, str]


@dataclasses.dataclass
class _Batch:
    run: asyncio.Task[dict[str, np.ndarray]]
    requests: list[Mapping[str, np.ndarray]]
    rows: int


class Batcher:
    """One batch at a time is open per model version and signature, up to the largest size."""

    def __init__(self):
        self._open: dict[_Key, _Batch] = {}

    async def run(
        self, servable: Servable, signature: str, inputs: Mapping[str, np.ndarray], limit: int
    ) -> dict[str, np.ndarray]:
        """Runs checked inputs `[B, ...]` along with others'; returns the outputs of these rows.

        Raises:
            ServingError: INVALID_ARGUMENT for more rows than the `limit` of a batch (TensorFlow's
                shared_batch_scheduler.h); whatever the model raises.
        """
        rows = signatures.batch_size(inputs)
        if rows > limit:
            raise invalid(f"Task size {rows} is larger than maximum input batch size {limit}")
        key = (id(servable), signature)
        batch = self._open.get(key)
        if batch is None or batch.rows + rows > limit:
            requests = []
            batch = _Batch(asyncio.create_task(self._run(key, servable, requests)), requests, 0)
            self._open[key] = batch
        start = batch.rows
        batch.requests.append(inputs)
        batch.rows += rows
        outputs = await asyncio.shield(batch.run)  # a caller that gives up must not stop the others
        return {name: x[start : start + rows] for name, x in outputs.items()}

    async def _run(
        self, key: _Key, servable: Servable, requests: list[Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        if self._open[key].requests is requests:  # else it was full, and another one is open
            del self._open[key]
        inputs = requests[0]
        if len(requests) > 1:
            inputs = {name: np.concatenate([r[name] for r in requests]) for name in inputs}
        return servable.run(key[1], inputs)
