"""Files at any URL: reading and writing, retries, and tensors in blocks."""
