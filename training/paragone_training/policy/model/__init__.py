"""The policy as a model: weights, log-probabilities, packed passes, sharding, memory."""
