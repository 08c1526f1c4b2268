"""What offline agents do with the rows of a batch before they learn from them."""

from jax import Array
from jaxtyping import Float

from rljax import normalizers
from rljax.offline.outlook import RETURN_TO_GO
from rljax.replay.base import Sample
from rljax.types import Observation, Scalar


def normalized(
    observation: Observation, moments: normalizers.Moments | None, clip: Scalar
) -> Observation:
    """The observation as networks see it: by the dataset's moments, or as it is where None."""
    features = normalizers.normalize_observation(observation.features, moments, clip)
    return observation._replace(features=features)


def normalized_sample(batch: Sample, moments: normalizers.Moments | None, clip: Scalar) -> Sample:
    """The batch with both of its observations `normalized`."""
    return batch._replace(
        observation=normalized(batch.observation, moments, clip),
        next_observation=normalized(batch.next_observation, moments, clip),
    )


def scaled_rewards(batch: Sample, scale: Float[Array, ""] | None) -> Sample:
    """The batch with rewards, and returns to go where it holds them, times `scale`, if not None."""
    if scale is None:
        return batch
    extras = dict(batch.extras)
    if RETURN_TO_GO in extras:
        extras[RETURN_TO_GO] = scale * extras[RETURN_TO_GO]
    return batch._replace(reward=scale * batch.reward, extras=extras)
