"""DAgger: clone an expert, asked in the states that the clone gets into (Ross et al. 2011,
arXiv:1011.0686).

How rows are collected, labeled and kept is `rljax.loops.dagger`; the learner is behavior cloning's
(`agents.bc`), its losses and its update. What is here is how often the expert acts in each round.
"""  # noqa: D205

import dataclasses
import enum

from agents import bc
from agents.bc import Loss
from rljax import validation
from rljax.agent import Agent
from rljax.loops import dagger
from rljax.nn.mlp import Activation
from rljax.nn.torsos import Torso
from rljax.types import EnvSpec


class Beta(enum.Enum):
    """How likely it is that the expert acts in a step of round i = 0, 1, ... of N."""

    FIRST_ROUND = "first_round"  # 1, then 0: the paper's choice without a parameter
    GEOMETRIC = "geometric"  # config.beta to the power i
    LINEAR = "linear"  # 1 - i / (N - 1): the last round is the learner's alone


@dataclasses.dataclass(frozen=True)
class Config:
    """Every hyper-parameter of DAgger; each field is a flag `--config.<field>`."""

    num_rounds: int = 10  # N
    num_envs: int = 8  # stepped side by side
    rollout_length: int = 128  # rows of each environment in a round, all labeled by the expert
    num_updates: int = 1000  # of the clone after every round, from the rows of all rounds
    beta_schedule: Beta = Beta.FIRST_ROUND  # how likely it is that the expert acts in a step
    beta: float = 0.5  # of the geometric schedule, in [0, 1]
    batch_size: int = 256  # B: rows of one update; a multiple of the number of devices
    learning_rate: float = 1e-3  # of Adam
    adam_epsilon: float = 1e-8  # ε of Adam, added to √v̂ (Kingma & Ba 2015, algorithm 1)
    loss: Loss = Loss.LIKELIHOOD
    state_dependent_std: bool = False  # boxes only: σ(s), else a number per dimension
    initial_log_std: float = 0.0  # boxes only: ln σ, of actions in [-1, 1]
    torso: Torso = Torso.AUTO  # what looks at the observation
    hidden_sizes: tuple[int, ...] = (256, 256)  # of the MLP that looks at vectors
    activation: Activation = Activation.RELU  # behind its layers

    @property
    def total_steps(self) -> int:
        """Rows over all environments and rounds."""
        return self.num_rounds * self.num_envs * self.rollout_length


def betas(config: Config) -> tuple[float, ...]:
    """β of each round."""
    rounds = range(config.num_rounds)
    match config.beta_schedule:
        case Beta.FIRST_ROUND:
            return tuple(float(i == 0) for i in rounds)
        case Beta.GEOMETRIC:
            return tuple(config.beta**i for i in rounds)
        case Beta.LINEAR:
            return tuple(1 - i / max(1, config.num_rounds - 1) for i in rounds)


def cloning(config: Config) -> bc.Config:
    """Behavior cloning as DAgger does it, but for the rows."""
    shared = {field.name for field in dataclasses.fields(bc.Config)}
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return bc.Config(**{name: value for name, value in given.items() if name in shared})


def validate(config: Config) -> None:
    """Raises ValueError, one sentence, for values that cannot work."""
    validation.positive(config, "num_rounds", "num_envs", "rollout_length", "num_updates")
    validation.fraction(config, "beta")
    bc.validate(cloning(config))


def loop(config: Config) -> dagger.Config:
    """How DAgger is driven: rounds of rows, labels and updates."""
    return dagger.Config(
        betas(config),
        config.num_envs,
        config.rollout_length,
        config.num_updates,
        config.batch_size,
    )


def make(config: Config, spec: EnvSpec) -> Agent:
    """The clone, as `agents.bc` makes it; raises what that raises."""
    return bc.make(cloning(config), spec)
