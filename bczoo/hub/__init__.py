"""Weights that travel: published folders, the Hugging Face Hub, other projects' checkpoints, model cards, the zoo."""
