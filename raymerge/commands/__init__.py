"""What each command of `raymerge` does."""
