"""How good a model's rankings are, and whether a difference is more than chance. Torch and the standard library."""
