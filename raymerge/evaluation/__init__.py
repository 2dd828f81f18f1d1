"""How good rankings are, and whether a difference is more than chance. Plain torch; distributed.py runs it on Ray."""
