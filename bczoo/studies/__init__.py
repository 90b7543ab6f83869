"""Experiments in a box: the studies of causal confusion that the papers report, and that anybody can run again."""
