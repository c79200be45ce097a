"""One completions server: token ids in, token ids and log-probabilities out, and whether its weights are the policy's.

    RUN/probes.parquet     prompts and responses of the initial policy, sampled once in this process

vLLM and SGLang answer ``/v1/completions`` alike where ``return_token_ids`` is asked for (vLLM 0.32 and SGLang 0.5.23
were run); what differs is in ``VllmRoutes`` and ``SglangRoutes``.

A server proves with eight stored responses, after each load, that it has the policy's weights. A server that kept old
weights is near the old log-probabilities, and a tolerance alone may not see it where training moves slowly; so both are
compared. R responses.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx2
import pyarrow as pa

from paragone.addresses import without_userinfo
from paragone_evaluation.readers import Prompt
from paragone_training.errors import SamplerMismatchError
from paragone_training.policy.model.logprobs import Item
from paragone_training.policy.model.weights import Policy
from paragone_training.policy.rows import Response, read_table, stream, write_table
from paragone_training.policy.sampling.drawing import Decoding, sample

__all__ = [
    "CompletionsServer",
    "Routes",
    "ServerFault",
    "SglangRoutes",
    "VllmRoutes",
    "check_probes",
    "stored_probes",
]

logger = logging.getLogger(__name__)

# Refusals that say "not now", as everything from 500 on does.
_MAY_PASS = (408, 429)
_COUNT = 8
_LONGEST = 64
# Old weights explain a server's log-probabilities if its distance to them is below this share of the other.
_MUCH_NEARER = 0.25
_GROWTH = 10.0
# Nats a token, below which growth of a server's distance is rounding.
_NOTICED = 1e-4

_PROBES = pa.schema([("prompt_ids", pa.list_(pa.int32())), ("token_ids", pa.list_(pa.int32()))])


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
        model: the policy's name there; the only one it knows unless given.
    """

    def __init__(self, url: str, routes: "Routes", http: httpx2.AsyncClient, *, model: str | None = None) -> None:
        self._address = url.rstrip("/")
        self.url = without_userinfo(self._address)  # as people are told of it
        self.routes = routes
        self._http = http
        self._asked_model = model
        self.model = model

    def rename(self, model: str) -> None:
        """Expect the policy under another name there."""
        self._asked_model = model

    async def ready(self) -> bool:
        """Return whether it answers that it is well."""
        try:
            return (await self._http.get(f"{self._address}/health")).status_code == 200
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
        # A server may have several models; one of another name would answer, with other weights.
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
        # A server cuts what does not fit, and its answer would look like a response of its own accord.
        if context is not None and context < longest + kept:
            beside = f" beside the {kept} that such a server keeps" if kept else ""
            raise SamplerMismatchError(
                f"{self.url} has a context of {context} tokens and the policy needs {longest}{beside}: start it with a "
                f"longer one, or lower policy.max_length to {context - kept}"
            )
        # Token ids go both ways, so another vocabulary would be read as other words.
        for text, own in texts.items():
            theirs = await self._tokens(text)
            if theirs is not None and theirs != list(own):
                raise SamplerMismatchError(
                    f"the tokenizer of {self.url} is not the policy's: {text!r} is {theirs} there and {list(own)} here"
                )

    async def complete(
        self, prompt: Prompt, number: int, *, seed: int, decoding: Decoding, end_ids: Sequence[int]
    ) -> Response:
        """Return one response, without its text.

        Raises:
            ServerFault: if it failed this time.
            SamplerMismatchError: if the answer cannot be the policy's.
        """
        # A server fills in what is not said from the model's generation_config.json: everything is said.
        body = {
            "model": self.model,
            "prompt": list(prompt.token_ids),
            "n": 1,
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "top_k": decoding.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": seed,
            "stop_token_ids": list(end_ids),
            **({"stop": list(decoding.stops.texts)} if decoding.stops is not None else {}),
            "logprobs": 0,
            "return_token_ids": True,
            **self.routes.extra,
        }
        choice = (await self.call("POST", "/v1/completions", body))["choices"][0]
        token_ids, values, finished = self._checked(choice, prompt.token_ids, decoding, end_ids)
        # Where the server says those of a scaled distribution, none is better than wrong ones.
        logprob = float(sum(values)) if self.routes.plain_logprobs(decoding) else None
        ids = tuple(token_ids)
        return Response(prompt.id, prompt.text, number, prompt.token_ids, ids, "", finished, logprob)

    async def logprob(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> float:
        """Return the log-probability of a response, in nats, at temperature 1.

        Raises:
            ServerFault: if it failed this time.
            SamplerMismatchError: if the answer is about other tokens.
        """
        return await self.routes.logprob(self, prompt_ids, token_ids)

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: str | int
    ) -> dict[str, Any]:
        """Return the JSON that a route answers; {} where it answers nothing.

        Raises:
            ServerFault: if nothing answers, or the answer is "not now".
            SamplerMismatchError: if the request is refused.
        """
        answer = await self._send(method, path, body, query)
        if answer.status_code >= 400:
            raise SamplerMismatchError(f"{self.url}{path} refused ({answer.status_code}): {answer.text[:400]}")
        try:
            content = answer.json() if answer.content else {}
        except ValueError as error:
            raise SamplerMismatchError(f"{self.url}{path} answered no JSON: {answer.text[:200]!r}") from error
        return content if isinstance(content, dict) else {"answer": content}

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, query: Mapping[str, str | int]
    ) -> httpx2.Response:
        try:
            answer = await self._http.request(method, self._address + path, json=body, params=dict(query) or None)
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
        self, choice: Mapping[str, Any], prompt_ids: Sequence[int], decoding: Decoding, end_ids: Sequence[int]
    ) -> tuple[list[int], list[float], bool]:
        """Return token ids and log-probabilities of an answer that fits together, and whether it has an end."""
        reason, token_ids = choice.get("finish_reason"), choice.get("token_ids")
        # Aborted, by a server that shuts down say: another one may finish it.
        if reason not in ("stop", "length"):
            raise ServerFault(f"{self.url} ended a response with {reason!r}")
        if token_ids is None:
            raise SamplerMismatchError(
                f"{self.url} returns no token ids, and text is never tokenized again here: it needs return_token_ids "
                "of /v1/completions (vLLM 0.32 has it)"
            )
        read = choice.get("prompt_token_ids")
        # Some servers put a beginning-of-sequence token before the prompt.
        if read is not None and list(read) != list(prompt_ids):
            raise SamplerMismatchError(
                f"{self.url} read {len(read)} prompt tokens where {len(prompt_ids)} were sent: it adds or cuts some"
            )
        values = (choice.get("logprobs") or {}).get("token_logprobs")
        # A log-probability of a part would pass for that of the whole.
        if values is None or len(values) != len(token_ids) or any(value is None for value in values):
            raise SamplerMismatchError(f"{self.url} does not return one log-probability for each token")
        # A text that ends it was asked for; a server may draw a token more before it sees it.
        stopped = decoding.stops.cut(token_ids) if decoding.stops is not None else None
        if stopped is not None:
            return list(token_ids[:stopped]), list(values[:stopped]), True
        # The end token counts: its log-probability is part of the response's.
        if not token_ids or (token_ids[-1] in end_ids) != (reason == "stop"):
            raise SamplerMismatchError(
                f"{self.url} ended a response for {reason!r} at token {token_ids[-1:]}, and the end tokens are "
                f"{list(end_ids)}: it cuts the end token off, or stops at others"
            )
        # Cut before the limit: a shorter response than the policy would have given.
        if reason == "length" and len(token_ids) != decoding.max_new_tokens:
            raise SamplerMismatchError(
                f"{self.url} cut a response after {len(token_ids)} of {decoding.max_new_tokens} tokens: its context or "
                "its cache holds less than the policy's prompts and responses"
            )
        return list(token_ids), list(values), reason == "stop"


class Routes(Protocol):
    """What is particular to a kind of server.

    Attributes:
        extra: fields that its completions take.
        kept_tokens: of its context, that no prompt or response gets.
    """

    extra: Mapping[str, Any]
    kept_tokens: int

    def plain_logprobs(self, decoding: Decoding) -> bool:
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

    def plain_logprobs(self, decoding: Decoding) -> bool:  # noqa: ARG002 - the protocol's
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

    def plain_logprobs(self, decoding: Decoding) -> bool:
        """Return whether temperature left them alone: SGLang's are those of the scaled logits."""
        return decoding.temperature == 1.0

    async def logprob(self, server: CompletionsServer, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> float:
        """Return the log-probability of a response, in nats, from the native route; the OpenAI one has none."""
        body = {
            "input_ids": [*prompt_ids, *token_ids],
            "sampling_params": {"max_new_tokens": 1, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        rows = (await server.call("POST", "/generate", body))["meta_info"]["input_token_logprobs"][-len(token_ids) :]
        # Of the token ids themselves: a server that reads text would have split it in its own way.
        if [row[1] for row in rows] != list(token_ids):
            raise SamplerMismatchError(f"{server.url} gives log-probabilities of other tokens than it was sent")
        return sum(float(row[0]) for row in rows)

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


def stored_probes(
    path: Path, policy: Policy, prompts: Sequence[Prompt], *, source: str, seed: int, max_new_tokens: int
) -> list[Item]:
    """Return the prompts and responses that servers are checked with; sample and store them the first time.

    Args:
        policy: takes the initial weights if there is something to sample.

    Raises:
        RunError: if the file cannot be read or written.
    """
    if not path.exists():
        policy.become(source)
        first = [prompts[place % len(prompts)] for place in range(_COUNT)]
        # One token less than a response may have: servers that score a text draw one behind it.
        decoding = Decoding(max_new_tokens=max(min(_LONGEST, max_new_tokens - 1), 1))
        rows = sample(policy, first, [stream(seed, "probe", place) for place in range(_COUNT)], decoding)
        write_table(path, {name: [list(getattr(row, name)) for row in rows] for name in _PROBES.names}, _PROBES)
    return [(tuple(prompt), tuple(response)) for prompt, response in read_table(path, _PROBES)]


def check_probes(
    url: str,
    served: Sequence[float],
    expected: Sequence[float],
    probes: Sequence[Item],
    *,
    tolerance: float,
    before: Sequence[float] | None,
    usual: float | None,
) -> float:
    """Return how far a server's log-probabilities are from the trainer's, in nats a token; refuse other weights.

    Args:
        served: its log-probabilities of the stored responses. [R]
        expected: the trainer's. [R]
        tolerance: nats a token that they may be apart.
        before: the trainer's under the weights that the server had before, or None. [R]
        usual: the distance after the first load, or None; one that grew is warned about.

    Raises:
        SamplerMismatchError: if it is too far, or the weights before explain it much better.
    """
    # Per token: long responses add up more rounding.
    off = _distances(served, expected, probes)
    # All of them in the message: whether one is off or all are is half of the diagnosis.
    rows = ", ".join(f"{mine:.4f}/{theirs:.4f}" for mine, theirs in zip(served, expected, strict=True))
    largest = max(off)
    if not largest <= tolerance:
        raise SamplerMismatchError(
            f"the log-probabilities of {url} are up to {largest:.3g} nats a token from the trainer's, and "
            f"sampling.tolerance is {tolerance:g}: it has other weights, or another dtype (server/trainer: {rows})"
        )
    # A small step moves the policy less than a tolerance that is made for bfloat16 allows.
    if before is not None and list(before) != list(expected):
        old = sum(_distances(served, before, probes))
        if old < _MUCH_NEARER * sum(off):
            raise SamplerMismatchError(
                f"{url} still has the weights of the policy before: it is {old / len(probes):.2g} nats a token from "
                f"those and {sum(off) / len(probes):.2g} from the new ones (server/trainer: {rows})"
            )
    if usual is not None and largest > max(_GROWTH * usual, _NOTICED):
        logger.warning(
            "%s is %.2g nats a token from the trainer after this load and was %.2g after the first one: part of the "
            "weights may not have been taken; a lower sampling.tolerance stops the run",
            url,
            largest,
            usual,
        )
    return largest


def _distances(served: Sequence[float], expected: Sequence[float], probes: Sequence[Item]) -> list[float]:
    return [
        abs(mine - theirs) / len(token_ids)
        for mine, theirs, (_, token_ids) in zip(served, expected, probes, strict=True)
    ]
