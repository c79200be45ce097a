"""What runs a backbone: the contract, the engine that runs in this process, and one that asks a vLLM server."""
