"""From conversations to answers: cache keys, single flight, reading, queueing and arithmetic."""
