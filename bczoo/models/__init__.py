"""Families of models, a folder each, and the base classes they share."""
