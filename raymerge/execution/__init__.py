"""Where work is done: what a cluster has, the plan, processes that may die, and deadlines."""
