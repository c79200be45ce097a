"""The cache of representations: keys, the bytes of a value, memory, Redis, and the order they are asked in."""
