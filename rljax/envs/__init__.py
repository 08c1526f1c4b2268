"""Environments: in the graph (`JaxEnv`) and on the host (`HostEnv`).

    base              the two contracts
    wrappers          time limit and autoreset, pure functions over a `JaxEnv`
    cartpole pendulum catch masked_bandit corridor        in the graph
    host_envpool host_gymnasium                           on the host; `spaces` is what they share
    rendering         the frames of one episode

Open them through `rljax.sources`, which knows the names below.
"""

# Prefix of other people's in-graph environments -> the module whose `make(name, options)` adapts
# them; each is an extra of the same name.
ADAPTERS = {
    "gymnax": "rljax.envs.gymnax_tasks",
    "brax": "rljax.envs.brax_tasks",
    "playground": "rljax.envs.playground_tasks",
    "navix": "rljax.envs.navix_tasks",
}

# Name of an in-graph environment (`rljax:` in front) -> the module whose `make` builds it.
IN_GRAPH = {
    "cartpole": "rljax.envs.cartpole",
    "cartpole_positions": "rljax.envs.cartpole_positions",
    "catch": "rljax.envs.catch",
    "corridor": "rljax.envs.corridor",
    "masked_bandit": "rljax.envs.masked_bandit",
    "pendulum": "rljax.envs.pendulum",
    "pixel_catch": "rljax.envs.pixel_catch",
    "tmaze": "rljax.envs.tmaze",
}
