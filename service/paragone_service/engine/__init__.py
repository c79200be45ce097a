"""What runs a backbone: the contract, the engine that runs in this process, and those that ask another server."""

__all__ = ["REMOTE_ENGINES"]

REMOTE_ENGINES = {"vllm": "paragone_service.engine.vllm:VllmEngine"}
"""Engines that ask another server, by the word before the address in ``--engine NAME=WORD:http://…``.

A class is called with the model and the address, and with ``timeout_s`` and ``api_key``; it raises ``ConfigError`` for
a model that it cannot run. It is imported when a model asks for it: reading settings needs no torch.
"""
