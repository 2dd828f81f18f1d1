"""From an interaction log to user partitions: reading, cleaning, splitting."""
