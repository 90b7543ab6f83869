"""The policy's parts: encoder, step tokens, transformer, decoder, and the policy that joins them."""
