"""Several models of one shape become one. Plain torch, tensors in, tensors out; distributed.py runs it on Ray."""
