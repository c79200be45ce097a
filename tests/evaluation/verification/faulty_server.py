"""A reward server over a tiny model with any of the faults that ``paragone verify`` names, in all of its dialects.

``fault`` names what it does wrong; with an empty one it is right.
"""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForSequenceClassification

from tests.models import tiny

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


LIMIT = 1_000
"""Characters of a body that a server with the fault "limit" takes."""


def save_classifier(folder: Path) -> Path:
    """Write a sequence classifier with one logit, its tokenizer and a template that begins with the BOS token."""
    torch.manual_seed(7)
    config = tiny.llama_config(num_labels=1, pad_token_id=0, num_hidden_layers=1)
    config.max_position_embeddings = 8192
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tiny.make_tokenizer(TEMPLATE, adds_bos=True).save_pretrained(folder)
    return folder


class FaultyServer:
    def __init__(self, folder: Path, fault: str = "") -> None:
        self.fault = fault
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self.half = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def rewards(self, texts: list[str]) -> list[float]:
        faults = self.fault.split("+")
        ids = [self.tokenizer(text, add_special_tokens="double BOS" in faults).input_ids for text in texts]
        if "no BOS" in faults:
            ids = [one[1:] for one in ids]
        if "end cut" in faults:
            ids = [one[:300] for one in ids]
        if "start cut" in faults:
            ids = [one[-256:] for one in ids]
        longest = max(map(len, ids))
        logits = []
        for one in ids:
            padded = [0] * (longest - len(one)) + one if "padding seen" in faults else one
            logits.append(self._logit(padded, faults))
        if "sigmoid" in faults:
            return [1 / (1 + pow(2.718281828459045, -logit)) for logit in logits]
        if "softmax" in faults:
            return [1.0 for _ in logits]
        return [2.5 * logit - 1.0 for logit in logits] if "scaled" in faults else logits

    @torch.inference_mode()
    def _logit(self, ids: list[int], faults: list[str]) -> float:
        model, batch = self.half if "bfloat16" in faults else self.model, torch.tensor([ids])
        if "token before" not in faults and "mean" not in faults:
            return float(model(input_ids=batch).logits[0, 0])
        at_each = model.score(model.model(input_ids=batch).last_hidden_state)[0, :, 0]
        return float(at_each.mean() if "mean" in faults else at_each[-2])

    def conversation(self, messages: list[dict]) -> str:
        if self.fault == "no template":
            return "\n".join(message["content"] for message in messages)
        prompted = self.fault == "generation prompt"
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)

    def answer(self, path: str, body: dict) -> object:
        """Return the answer of whichever dialect is spoken at a path."""
        if "messages" in body:
            (reward,) = self.rewards([self.conversation(body["messages"])])
            if path == "/classify":
                return {"data": [{"index": 0, "probs": [reward]}]}
            token = {"token": "reward", "logprob": reward}
            return {"choices": [{"message": {"content": f"reward:{reward}"}, "logprobs": {"content": [token]}}]}
        if path == "/rm":
            prompt = body["prompt"]
            turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
            return self.rewards([self.conversation([*turns, {"role": "assistant", "content": body["response"]}])])[0]
        if path == "/get_reward":
            return {"rewards": self.rewards(body["query"])}
        if path == "/predict":
            rewards = self.rewards([text for (text,) in body["inputs"]])
            return [[{"label": "LABEL_0", "score": one}] for one in rewards]
        if "text" in body:
            return [{"embedding": [one], "meta_info": {}} for one in self.rewards(body["text"])]
        rewards = list(enumerate(self.rewards(body["input"])))
        if "raw_scores" in body:
            return {"data": [[{"score": one, "label": "LABEL_0"}] for _, one in rewards]}
        name = {"/classify": "probs", "/pooling": "data", "/v1/embeddings": "embedding"}[path]
        return {"data": [{"index": at, name: [one]} for at, one in reversed(rewards)]}


@contextlib.contextmanager
def serving(server: FaultyServer):
    """Yield the URL of a real HTTP server."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            refused = server.fault == "limit" and len(json.dumps(body)) > LIMIT
            answer = {"error": "the text is too long"} if refused else server.answer(self.path, body)
            content = json.dumps(answer).encode()
            self.send_response(422 if refused else 200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            return

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
