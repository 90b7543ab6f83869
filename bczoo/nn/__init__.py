"""Layers that several families share; none of them knows a family."""
