"""Training of an encoder: batches, the loop, the state it resumes from. Plain torch; distributed.py runs it on Ray."""
