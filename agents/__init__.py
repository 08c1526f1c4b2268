"""The agents: one file per algorithm, each with its config, its losses and its update."""

AGENTS = {  # name on the command line -> module; resolved lazily by rljax.registry
    "ppo": "agents.ppo",
    "ppo_recurrent": "agents.ppo_recurrent",
    "dqn": "agents.dqn",
    "sac": "agents.sac",
    "a2c": "agents.a2c",
    "impala": "agents.impala",
    "random": "agents.random",
    "bc": "agents.bc",
    "iql": "agents.iql",
    "cql": "agents.cql",
    "cql_discrete": "agents.cql_discrete",
    "td3_bc": "agents.td3_bc",
    "rebrac": "agents.rebrac",
    "dagger": "agents.dagger",
}
