"""One completions server: token ids in, token ids and log-probabilities out, and the routes for new weights.

vLLM and SGLang answer ``/v1/completions`` alike where ``return_token_ids`` is asked for (vLLM 0.32 and SGLang 0.5.23
were run); what differs is in ``VllmRoutes`` and ``SglangRoutes``.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import httpx2

from paragone_training.policy.errors import SamplerMismatchError
from paragone_training.policy.sampling.in_process import Draw, Sample

__all__ = ["CompletionsServer", "Routes", "ServerFault", "SglangRoutes", "VllmRoutes"]

logger = logging.getLogger(__name__)

_MAY_PASS = (408, 429)
"""Refusals that say "not now", as everything from 500 on does."""


class ServerFault(Exception):  # noqa: N818 - a fault of a server, handled where servers are chosen
    """A request failed in a way that may pass, here or at another server.

    Attributes:
        gone: whether nothing answered at all.
    """

    def __init__(self, message: str, *, gone: bool = False) -> None:
        super().__init__(message)
        self.gone = gone


class CompletionsServer:
    """A server, asked through one HTTP client that belongs to the caller.

    Args:
        url: without a path.
        routes: what is particular to its kind.
        http: the client.
        model: the policy's name there; the only one it knows unless given.
    """

    def __init__(self, url: str, routes: "Routes", http: httpx2.AsyncClient, *, model: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.routes = routes
        self._http = http
        self._asked_model = model
        self.model = model

    def rename(self, model: str) -> None:
        """Expect the policy under another name there.

        Args:
            model: the name.
        """
        self._asked_model = model

    async def ready(self) -> bool:
        """Return whether it answers that it is well."""
        try:
            return (await self._http.get(f"{self.url}/health")).status_code == 200
        except httpx2.TransportError:
            return False

    async def meet(self, *, longest: int, texts: Mapping[str, Sequence[int]]) -> None:
        """Learn the policy's name there, and refuse a server of another model.

        Args:
            longest: tokens that a prompt and a response may have together.
            texts: token ids by text, as the policy's tokenizer has them.

        Raises:
            SamplerMismatchError: if it has another model, a shorter context or another tokenizer.
            ServerFault: if it does not answer.
        """
        listed = {row["id"]: row.get("max_model_len") for row in (await self.call("GET", "/v1/models"))["data"]}
        name = self._asked_model
        if name is None and len(listed) == 1:
            (name,) = listed
        if name not in listed:
            raise SamplerMismatchError(
                f"{self.url} serves {', '.join(listed)}; servers.model has to name the one that is the policy"
            )
        self.model, context = name, listed[name]
        kept = self.routes.kept_tokens
        if context is not None and context < longest + kept:
            beside = f" beside the {kept} that such a server keeps" if kept else ""
            raise SamplerMismatchError(
                f"{self.url} has a context of {context} tokens and the policy needs {longest}{beside}: start it with a "
                f"longer one, or lower policy.max_length to {context - kept}"
            )
        for text, own in texts.items():
            theirs = await self._tokens(text)
            if theirs is not None and theirs != list(own):
                raise SamplerMismatchError(
                    f"the tokenizer of {self.url} is not the policy's: {text!r} is {theirs} there and {list(own)} here"
                )

    async def complete(self, prompt_ids: Sequence[int], *, seed: int, settings: Draw, end_ids: Sequence[int]) -> Sample:
        """Return one response.

        Args:
            prompt_ids: what it continues.
            seed: of its random numbers.
            settings: how tokens are drawn.
            end_ids: tokens that end a response.

        Raises:
            ServerFault: if it failed this time.
            SamplerMismatchError: if the answer cannot be the policy's.
        """
        # A server fills in what is not said from the model's generation_config.json: everything is said.
        body = {
            "model": self.model,
            "prompt": list(prompt_ids),
            "n": 1,
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": seed,
            "stop_token_ids": list(end_ids),
            "logprobs": 0,
            "return_token_ids": True,
            **self.routes.extra,
        }
        choice = (await self.call("POST", "/v1/completions", body))["choices"][0]
        token_ids, values = self._checked(choice, prompt_ids, settings, end_ids)
        known = self.routes.plain_logprobs(settings)
        finished = choice["finish_reason"] == "stop"
        return Sample(tuple(token_ids), finished, float(sum(values)) if known else None)

    async def logprob(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> float:
        """Return the log-probability of a response, in nats, at temperature 1.

        Args:
            prompt_ids: of its prompt.
            token_ids: its own.

        Raises:
            ServerFault: if it failed this time.
            SamplerMismatchError: if the answer is about other tokens.
        """
        return await self.routes.logprob(self, prompt_ids, token_ids)

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: str | int
    ) -> dict[str, Any]:
        """Return the JSON that a route answers; {} where it answers nothing.

        Args:
            method: of HTTP.
            path: of the route.
            body: JSON, or None.
            query: of the URL.

        Raises:
            ServerFault: if nothing answers, or the answer is "not now".
            SamplerMismatchError: if the request is refused.
        """
        answer = await self._send(method, path, body, query)
        if answer.status_code >= 400:
            raise SamplerMismatchError(f"{self.url}{path} refused ({answer.status_code}): {answer.text[:400]}")
        try:
            found = answer.json() if answer.content else {}
        except ValueError as error:
            raise SamplerMismatchError(f"{self.url}{path} answered no JSON: {answer.text[:200]!r}") from error
        return found if isinstance(found, dict) else {"answer": found}

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, query: Mapping[str, str | int]
    ) -> httpx2.Response:
        try:
            answer = await self._http.request(method, self.url + path, json=body, params=dict(query) or None)
        except httpx2.TransportError as error:
            raise ServerFault(f"{self.url} did not answer ({error!r})", gone=True) from error
        if answer.status_code in _MAY_PASS or answer.status_code >= 500:
            raise ServerFault(f"{self.url}{path} failed ({answer.status_code}): {answer.text[:400]}")
        return answer

    async def _tokens(self, text: str) -> list[int] | None:
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        answer = await self._send("POST", "/tokenize", body, {})
        if answer.status_code >= 400:
            logger.info("%s does not tokenize; its log-probabilities will tell whether it is the policy", self.url)
            return None
        tokens: list[int] = answer.json()["tokens"]
        return tokens

    def _checked(
        self, choice: Mapping[str, Any], prompt_ids: Sequence[int], settings: Draw, end_ids: Sequence[int]
    ) -> tuple[list[int], list[float]]:
        """Return token ids and log-probabilities of an answer that fits together."""
        reason, token_ids = choice.get("finish_reason"), choice.get("token_ids")
        if reason not in ("stop", "length"):
            raise ServerFault(f"{self.url} ended a response with {reason!r}")
        if token_ids is None:
            raise SamplerMismatchError(
                f"{self.url} returns no token ids, and text is never tokenized again here: it needs return_token_ids "
                "of /v1/completions (vLLM 0.32 has it)"
            )
        read = choice.get("prompt_token_ids")
        if read is not None and list(read) != list(prompt_ids):
            raise SamplerMismatchError(
                f"{self.url} read {len(read)} prompt tokens where {len(prompt_ids)} were sent: it adds or cuts some"
            )
        values = (choice.get("logprobs") or {}).get("token_logprobs")
        if values is None or len(values) != len(token_ids) or any(value is None for value in values):
            raise SamplerMismatchError(f"{self.url} does not return one log-probability for each token")
        if not token_ids or (token_ids[-1] in end_ids) != (reason == "stop"):
            raise SamplerMismatchError(
                f"{self.url} ended a response for {reason!r} at token {token_ids[-1:]}, and the end tokens are "
                f"{list(end_ids)}: it cuts the end token off, or stops at others"
            )
        if reason == "length" and len(token_ids) != settings.max_new_tokens:
            raise SamplerMismatchError(
                f"{self.url} cut a response after {len(token_ids)} of {settings.max_new_tokens} tokens: its context or "
                "its cache holds less than the policy's prompts and responses"
            )
        return list(token_ids), list(values)


class Routes(Protocol):
    """What is particular to a kind of server.

    Attributes:
        extra: fields that its completions take.
        kept_tokens: of its context, that no prompt or response gets.
    """

    extra: Mapping[str, Any]
    kept_tokens: int

    def plain_logprobs(self, settings: Draw) -> bool:
        """Return whether the log-probabilities of responses are those at temperature 1."""

    async def logprob(self, server: CompletionsServer, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> float:
        """Return the log-probability of a response, in nats, at temperature 1."""

    async def update(self, server: CompletionsServer, model: str) -> None:
        """Have it read other weights from a folder that it can see, and forget what it cached of the old ones."""

    async def sleep(self, server: CompletionsServer) -> None:
        """Have it give its device's memory back."""

    async def wake(self, server: CompletionsServer) -> None:
        """Have it take the memory again."""


class VllmRoutes:
    """vLLM; ``update`` and ``sleep`` need VLLM_SERVER_DEV_MODE=1, ``sleep`` also --enable-sleep-mode and CUDA."""

    extra: Mapping[str, Any] = {}
    kept_tokens: int = 0

    def plain_logprobs(self, settings: Draw) -> bool:  # noqa: ARG002 - the protocol's
        """Return True: --logprobs-mode raw_logprobs is vLLM's default."""
        return True

    async def logprob(self, server: CompletionsServer, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> float:
        """Return the log-probability of a response, in nats, from the prompt_logprobs of both together."""
        body = {
            "model": server.model,
            "prompt": [*prompt_ids, *token_ids],
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": 0,
        }
        choice = (await server.call("POST", "/v1/completions", body))["choices"][0]
        rows = (choice.get("prompt_logprobs") or [])[len(prompt_ids) :]
        try:
            return sum(float(row[str(token)]["logprob"]) for row, token in zip(rows, token_ids, strict=True))
        except (KeyError, TypeError, ValueError) as error:
            raise SamplerMismatchError(f"{server.url} gives no prompt_logprobs of the tokens it was sent") from error

    async def update(self, server: CompletionsServer, model: str) -> None:
        """Reload in place. vLLM keeps the prefix cache of the old weights, so it is emptied; nothing may be running."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": model}}
        await server.call("POST", "/collective_rpc", body)
        await server.call("POST", "/reset_prefix_cache")

    async def sleep(self, server: CompletionsServer) -> None:
        """Move the weights to main memory and drop the cache."""
        await server.call("POST", "/sleep", level=1)

    async def wake(self, server: CompletionsServer) -> None:
        """Move the weights back."""
        await server.call("POST", "/wake_up")


class SglangRoutes:
    """SGLang; ``sleep`` needs --enable-memory-saver, and its seeds --enable-deterministic-inference (both not run)."""

    extra: Mapping[str, Any] = {"no_stop_trim": True}
    # A response ends two tokens before its context does, and a text that is scored has to be seven shorter than that;
    # with a stored response it is at least one token shorter than the longest.
    kept_tokens: int = 6

    def plain_logprobs(self, settings: Draw) -> bool:
        """Return whether temperature left them alone: SGLang's are those of the scaled logits."""
        return settings.temperature == 1.0

    async def logprob(self, server: CompletionsServer, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> float:
        """Return the log-probability of a response, in nats, from the native route; the OpenAI one has none."""
        body = {
            "input_ids": [*prompt_ids, *token_ids],
            "sampling_params": {"max_new_tokens": 1, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        found = (await server.call("POST", "/generate", body))["meta_info"]["input_token_logprobs"][-len(token_ids) :]
        if [row[1] for row in found] != list(token_ids):
            raise SamplerMismatchError(f"{server.url} gives log-probabilities of other tokens than it was sent")
        return sum(float(row[0]) for row in found)

    async def update(self, server: CompletionsServer, model: str) -> None:
        """Reload in place and empty the cache; from then on the policy's name there is the folder."""
        answer = await server.call("POST", "/update_weights_from_disk", {"model_path": model, "flush_cache": True})
        if not answer.get("success"):
            raise SamplerMismatchError(f"{server.url} did not take the weights of {model}: {answer.get('message')}")
        server.rename(model)

    async def sleep(self, server: CompletionsServer) -> None:
        """Give weights and cache back."""
        await server.call("POST", "/release_memory_occupation", {})

    async def wake(self, server: CompletionsServer) -> None:
        """Take the memory again; the weights have to be read anew."""
        await server.call("POST", "/resume_memory_occupation", {})
