"""Lightning callbacks: resumable checkpoints, playing the game after training, writing predictions."""
