"""BCPolicy: the policy transformer with an action decoder (paper 2601.04575)."""
