"""Image tokenizers: a picture as a grid of ids of a codebook, and back."""
