"""Actors: who collects for `rljax.loops.actor_learner`, each with environments of its own.

`base` says what a fleet of them does; `threads` has them in this process, `ray_actors` in others.
"""
