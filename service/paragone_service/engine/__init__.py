"""What runs a backbone: the contract, and the engine that runs in this process."""
