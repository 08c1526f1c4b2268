"""Network modules (Flax Linen); initializers are stated where a layer is made."""
