import jax
import jax.numpy as jnp

from agents import cql
from launch.benchmarks import five_pass_cql
from tests.agents.offline_checks import SPECS
from tests.agents.samples import B, learn, sample
from tests.agents.updates import differs, same


def test_five_passes_learn_what_ours_learns_in_two(key):
    """A second opinion on the losses of CQL, and that the ratio compares equal work."""
    config = cql.Config(
        num_draws=3, gap_target=5.0, actor_hidden_sizes=(8,), critic_hidden_sizes=(8, 8)
    )
    agents = [module.make(config, SPECS["box"]) for module in (cql, five_pass_cql)]
    ours, theirs = (agent.init(key) for agent in agents)
    same(ours, theirs)
    for number in range(3):
        step = jax.random.fold_in(key, number)
        batch = sample(SPECS["box"], step)._replace(weight=jnp.ones(B))
        ours, _, _ = learn(agents[0], ours, batch, step)
        theirs, _, _ = learn(agents[1], theirs, batch, step)
    same(ours, theirs, rtol=1e-4, atol=1e-6)
    assert differs(ours.params, agents[0].init(key).params)
