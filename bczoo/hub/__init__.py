"""Weights that travel: exported folders, the Hugging Face Hub, other projects' checkpoints, model cards, the zoo."""
