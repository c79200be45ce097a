"""The HTTP side: server, middleware, bodies, errors and routes."""
