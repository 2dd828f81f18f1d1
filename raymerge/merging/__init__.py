"""Several models of one shape become one. Torch and the standard library; tensors in, tensors out."""
