"""Training a policy against the hosted oracle: targets, diagnostics and the loop."""
