"""The HTTP routes: each turns a request of the wire contract into a call of a hosted model, and rows into an answer."""
