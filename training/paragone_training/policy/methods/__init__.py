"""The policy methods: one object each, and the losses they share."""
