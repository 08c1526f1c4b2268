# pyright: reportMissingImports=false
"""Seconds of windows of d3rlpy's updates on a made-up dataset: one JSON line on stdout.

Run by `launch.benchmarks.offline_speed`, with an interpreter that has d3rlpy and none of ours.

    .venv-d3rlpy/bin/python launch/benchmarks/peer_d3rlpy.py '{"config": "IQLConfig", ...}'
"""

import json
import sys
import time

import d3rlpy
import numpy as np
import torch


def main() -> None:
    """Times the first update, then `repeats` windows, on as many threads as are fastest."""
    job = json.loads(sys.argv[1])
    d3rlpy.seed(0)
    dataset = made_up(**job["data"])
    encoders = {
        name: d3rlpy.models.VectorEncoderFactory(
            hidden_units=list(job["hidden_sizes"]), use_layer_norm=name in job["normalized"]
        )
        for name in job["encoders"]
    }
    algorithm = getattr(d3rlpy.algos, job["config"])(**job["options"], **encoders).create()
    algorithm.build_with_dataset(dataset)

    def timed(updates):
        start = time.perf_counter()
        for _ in range(updates):
            algorithm.update(dataset.sample_transition_batch(job["options"]["batch_size"]))
        return time.perf_counter() - start

    first = timed(1)  # makes what is made on demand
    tried = {}
    for count in {torch.get_num_threads(), 1}:  # with networks this small, one may be faster
        torch.set_num_threads(count)
        tried[count] = timed(max(1, job["window"] // 10))
    torch.set_num_threads(min(tried, key=lambda count: tried[count]))
    seconds = [timed(job["window"]) for _ in range(job["repeats"])]
    print(json.dumps({"first_update_seconds": first, "seconds": seconds}))


def made_up(episodes, episode_length, observation_size, action_size, discrete):
    """Noise: episodes that a time limit ends."""
    rng, steps = np.random.default_rng(0), episodes * episode_length
    observations = rng.normal(size=(steps, observation_size)).astype(np.float32)
    if discrete:
        actions = rng.integers(action_size, size=(steps, 1))
    else:
        actions = rng.uniform(-1, 1, size=(steps, action_size)).astype(np.float32)
    ends = np.arange(1, steps + 1) % episode_length == 0
    return d3rlpy.dataset.MDPDataset(
        observations,
        actions,
        rng.normal(size=(steps, 1)).astype(np.float32),
        np.zeros(steps),
        ends.astype(np.float32),
        action_space=d3rlpy.ActionSpace.DISCRETE if discrete else d3rlpy.ActionSpace.CONTINUOUS,
        action_size=action_size,
    )


if __name__ == "__main__":
    main()
