"""Discrete CQL's presets, by environment; all of them ours."""

from agents.cql_discrete import Config
from launch.presets import from_datasets

_OURS = {
    "CartPole-v1": Config(
        total_updates=50_000,
        batch_size=128,
        learning_rate=3e-4,
        target_rate=0.02,
        target_period=1,
        huber_threshold=1e6,  # squared errors, none is larger: of linear ones it falls back
        hidden_sizes=(128, 128),
    ),
}
PRESETS = from_datasets("cql_discrete", _OURS, {})
