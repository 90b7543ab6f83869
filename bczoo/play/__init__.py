"""A policy in closed loop: the agent, sampling, games side by side and on the clock, latency."""
