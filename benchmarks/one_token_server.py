"""A chat server for one token: what a causal model would say next, with the log-probabilities of 20 alternatives.

    python benchmarks/one_token_server.py FOLDER --port 8123

It answers ``/v1/chat/completions`` as vLLM does for ``max_tokens`` of 1, from one forward pass, for measuring judges on
a machine where no other server has log-probabilities. It generates nothing.
"""

import argparse
import threading
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()

    import torch
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.folder)
    model = AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32).eval()
    turn = threading.Lock()

    def next_token(messages: list[dict[str, str]]) -> tuple[list[tuple[str, float]], int]:
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        with turn, torch.inference_mode():
            logits = model(input_ids=ids, logits_to_keep=1).logits[0, -1].float()
        best = torch.log_softmax(logits, dim=-1).topk(20)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(tokenizer.decode([one]), value) for one, value in pairs], ids.shape[1]

    async def complete(request: Request) -> JSONResponse:
        body = await request.json()
        alternatives, read = await run_in_threadpool(next_token, body["messages"])
        text, logprob = alternatives[0]
        listed = [{"token": one, "logprob": value} for one, value in alternatives]
        content = [{"token": text, "logprob": logprob, "top_logprobs": listed}]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "length",
            "logprobs": {"content": content},
        }
        return JSONResponse({"choices": [choice], "usage": {"prompt_tokens": read, "completion_tokens": 1}})

    async def models(_: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [{"id": str(arguments.folder), "object": "model"}]})

    routes = [Route("/v1/chat/completions", complete, methods=["POST"]), Route("/v1/models", models)]
    uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
