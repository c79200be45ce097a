"""The HTTP routes: each turns a request of the wire contract into a call of an oracle, and rows into an answer."""
