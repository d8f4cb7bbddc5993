"""Who am I, and how do numbers cross replicas."""
