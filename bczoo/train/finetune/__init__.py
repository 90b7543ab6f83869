"""Fine-tuning: a trained policy goes on with another game, another action space, parts frozen or LoRA-trained."""
