"""CNNPolicy: BC-CNN, a small CNN and a GPT over one embedding a frame (paper 2411.04434)."""
