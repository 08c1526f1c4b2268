"""World models (DreamerV3): latent dynamics, imagination and the agents that learn inside it."""
