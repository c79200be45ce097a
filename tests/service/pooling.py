"""A pooling server in vLLM's JSON: a bare backbone through transformers, one sequence at a time."""

import base64

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from transformers import AutoModel


class PoolingServer:
    """What ``vllm serve FOLDER --runner pooling --convert embed`` answers, as far as the engine asks.

    Its attributes make it misbehave: answers to give first, tokens to cut, rows to drop, activation forced on.
    """

    def __init__(self, folder):
        self.backbone = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.requests = []
        self.first = []
        self.cut = 0
        self.drop = 0
        self.always_activate = False
        self.lists = False
        self.well = True
        self.app = FastAPI()
        self.app.add_api_route("/pooling", self.pooling, methods=["POST"])

    async def pooling(self, request: Request):
        body = await request.json()
        self.requests.append((body, dict(request.headers)))
        if not self.well:
            return JSONResponse({}, status_code=503)
        if self.first:
            status, content = self.first.pop(0)
            return JSONResponse(content, status_code=status)
        sequences = [ids[self.cut :] for ids in body["input"]]
        rows = []
        for index, ids in enumerate(sequences):
            with torch.inference_mode():
                state = self.backbone(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]
            if self.always_activate or body.get("use_activation") is not False:
                state = torch.nn.functional.normalize(state, dim=-1)
            data = state.tolist() if self.lists else base64.b64encode(state.numpy().tobytes()).decode()
            rows.append({"index": index, "object": "pooling", "data": data})
        tokens = sum(map(len, sequences))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
        return {"id": "pool-1", "object": "list", "model": "backbone", "data": rows[self.drop :], "usage": usage}
