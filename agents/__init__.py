"""The agents: one file per algorithm, each with its config, its losses and its update."""

AGENTS = {  # name on the command line -> module; resolved lazily by rljax.registry
    "ppo": "agents.ppo",
}
