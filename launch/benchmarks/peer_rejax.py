# pyright: reportMissingImports=false
"""Steps per second of rejax's PPO on Gymnax' CartPole, seeds vmapped: one JSON line on stdout.

Run by `launch.benchmarks.in_graph`, with an interpreter that has rejax and none of ours. All its
training is one program, whose evaluations are switched off.

    .venv-rejax/bin/python launch/benchmarks/peer_rejax.py '{"num_seeds": 8, ...}'
"""

import json
import sys
import time

import jax
import rejax


def main() -> None:
    """Compiles, then trains `repeats` times from the start."""
    job = json.loads(sys.argv[1])
    algorithm = rejax.get_algo("ppo").create(
        **job["ppo"], eval_freq=job["ppo"]["total_timesteps"], skip_initial_evaluation=True
    )
    algorithm = algorithm.replace(eval_callback=lambda algorithm, state, key: ())
    keys = jax.random.split(jax.random.key(0), job["num_seeds"])
    train = jax.jit(jax.vmap(algorithm.train))
    start = time.perf_counter()
    compiled = train.lower(keys).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(keys))  # the first call may prepare more
    seconds = []
    for _ in range(job["repeats"]):
        start = time.perf_counter()
        jax.block_until_ready(compiled(keys))
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"compile_seconds": compile_seconds, "seconds": seconds}))


if __name__ == "__main__":
    main()
