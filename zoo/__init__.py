"""zoo: registry and retrieval of pruned sub-networks."""
