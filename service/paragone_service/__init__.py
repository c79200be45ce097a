"""The service: reward and preference models over HTTP. Knows models, and of the client the wire types alone."""
