"""Other servers' routes, answered in their own shapes: a file a dialect."""
