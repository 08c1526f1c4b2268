"""What a run measures: named scalars `group/noun`, the sinks they go to, and plots of them."""
