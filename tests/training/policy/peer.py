"""A completions server in vLLM's JSON, with SGLang's update, that really generates, in a process of its own.

``python -m tests.training.policy.peer MODEL PORT``. ``POST /misbehave`` makes it slow, broken or dishonest, one way at
a time: delay_s or status (for ``count`` requests, all of them unless given), die, cut_end, no_ids, extra_token, deaf
(updates are acknowledged and not made), ignore_stop (texts that end a response are drawn over).
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from paragone_evaluation.readers import Prompt
from paragone_training.policy.model.weights import load_policy
from paragone_training.policy.rows import stream
from paragone_training.policy.sampling.drawing import Decoding, sample
from paragone_training.policy.sampling.stopping import Stops


def well():
    return {}


class Peer:
    """What ``vllm serve MODEL`` answers, as far as a sampler asks."""

    def __init__(self, model: str) -> None:
        self.name = model
        self.policy = load_policy(model)
        self.lock = threading.Lock()
        self.mood: dict = {}
        self.seen: list = []
        self.app = FastAPI()
        for path, answer, methods in (
            ("/health", well, ["GET"]),
            ("/v1/models", self.models, ["GET"]),
            ("/reset_prefix_cache", well, ["POST"]),
            ("/requests", lambda: {"seen": self.seen}, ["GET"]),
        ):
            self.app.add_api_route(path, answer, methods=methods)
        for path, work in (
            ("/tokenize", self.tokenize),
            ("/v1/completions", self.complete),
            ("/collective_rpc", self.update),
            ("/update_weights_from_disk", self.update_and_rename),
            ("/misbehave", self.misbehave),
        ):
            self.app.add_api_route(path, self.route(work), methods=["POST"])

    def route(self, work):
        async def answer(request: Request):
            body = await request.json()
            return await run_in_threadpool(work, body)

        return answer

    def models(self):
        return {"data": [{"id": self.name, "max_model_len": self.policy.model.config.max_position_embeddings}]}

    def tokenize(self, body):
        return {"tokens": self.policy.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]}

    def misbehave(self, body):
        self.mood = body
        return {}

    def update(self, body):
        if "deaf" not in self.mood:
            with self.lock:
                self.policy.become(body["kwargs"]["weights_path"])
        return {"results": [None]}

    def update_and_rename(self, body):
        """Do what SGLang does: the folder is the name from then on."""
        self.name = body["model_path"]
        self.update({"kwargs": {"weights_path": self.name}})
        return {"success": True, "message": ""}

    def complete(self, body):
        mood = self.mood
        if ("delay_s" in mood or "status" in mood or "die" in mood) and mood.get("count", 1) > 0:
            mood["count"] = mood.get("count", 10**9) - 1
            if "die" in mood:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(mood.get("delay_s", 0))
            if "status" in mood:
                return JSONResponse({"error": {"message": "as asked"}}, status_code=mood["status"])
        if "prompt_logprobs" in body:
            return {"choices": [{"prompt_logprobs": self.prompt_logprobs(body["prompt"])}]}
        self.seen.append([body["prompt"], body["seed"]])
        stops = Stops(self.policy.tokenizer, body["stop"]) if "stop" in body and "ignore_stop" not in mood else None
        settings = Decoding(body["temperature"], body["top_p"], max(body["top_k"], 0), body["max_tokens"], stops)
        with self.lock:
            prompt = Prompt("", "", tuple(body["prompt"]))
            (row,) = sample(self.policy, [prompt], [stream(body["seed"])], settings)
            rows = self.prompt_logprobs([*body["prompt"], *row.token_ids])[len(body["prompt"]) :]
        values = [known[str(token)]["logprob"] for known, token in zip(rows, row.token_ids, strict=True)]
        ids = list(row.token_ids)
        if "cut_end" in mood and row.finished:
            ids, values = ids[:-1], values[:-1]
        choice = {"finish_reason": "stop" if row.finished else "length", "logprobs": {"token_logprobs": values}}
        if "no_ids" not in mood:
            choice |= {"token_ids": ids, "prompt_token_ids": [0, *body["prompt"]] if "extra_token" in mood else None}
            choice["prompt_token_ids"] = choice["prompt_token_ids"] or body["prompt"]
        return {"choices": [choice]}

    @torch.no_grad()
    def prompt_logprobs(self, ids):
        table = self.policy.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(dim=-1)
        places = range(1, len(ids))
        return [None, *({str(ids[here]): {"logprob": table[here - 1, ids[here]].item()}} for here in places)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    model, port = sys.argv[1:3]
    uvicorn.run(Peer(str(Path(model))).app, host="127.0.0.1", port=int(port), log_level="warning")
