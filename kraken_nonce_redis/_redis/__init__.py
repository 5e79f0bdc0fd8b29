"""What is said to Redis, what it answers, and which node of a cluster to ask; no I/O."""
