"""How good rankings are, and whether differences are more than chance. Plain torch; distributed.py runs it on Ray."""
