"""Training of one encoder on one objective: batches, the loop, and the state that it resumes from. Plain torch."""
