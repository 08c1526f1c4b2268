"""Off-policy evaluation: what a policy would earn, from what another one did, and how sure that is.

Host-side maths on NumPy, in float64. Axes: E episodes (trajectories), T steps, N events of a
contextual bandit, A actions, D dimensions of an action, K weighted means, R resamples.
π is the policy asked about, b the behavior policy whose decisions were logged.
"""
