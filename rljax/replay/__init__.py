"""Replay: a buffer is a few pure functions over a pytree state; `base` has the contract."""
