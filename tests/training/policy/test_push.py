"""Pushing the last iterate to a Hub: a small one on this host that speaks the Hub's JSON, and none at all."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from paragone_training.errors import RecipeError, RunError
from paragone_training.policy.checks import check_recipe
from paragone_training.policy.exports import check_push, push_policy
from paragone_training.policy.rows import read_json_file
from tests.training.policy.tiny_policy import recipe


class Hub(BaseHTTPRequestHandler):
    """Answers who asks, makes a repository, and keeps the files of a commit."""

    def do_GET(self):
        known = self.headers.get("authorization") == "Bearer hf_mine"
        self.reply({"name": "me", "type": "user"} if known else {"error": "no such token"}, 200 if known else 401)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append(self.path)
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.reply({"files": files})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.reply(
                {"commitOid": "c" * 40, "commitUrl": f"{constants.ENDPOINT}/me/policy/commit/{'c' * 40}"},
                self.server.status,
            )
        else:
            self.server.made.append(json.loads(body))
            self.reply({"url": f"{constants.ENDPOINT}/me/policy"})

    def reply(self, content, status=200):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.files, server.made, server.status = [], {}, [], 200
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def made(tmp_path):
    policy = tmp_path / "run" / "iteration-02" / "step-1" / "policy"
    policy.mkdir(parents=True)
    (policy / "model.safetensors").write_bytes(b"weights")
    (policy / "config.json").write_text("{}")
    return policy, tmp_path / "run" / "pushed.json"


def test_the_last_iterate_is_pushed_once_into_a_private_repository(hub, tmp_path):
    policy, record = made(tmp_path)
    check_push("me/policy")
    push_policy(policy, "me/policy", record)
    assert hub.files == {"model.safetensors": b"weights", "config.json": b"{}"}
    assert hub.made[0]["visibility"] == "private"
    assert read_json_file(record) == {
        "repository": "me/policy",
        "policy": "iteration-02/step-1/policy",
        "commit": "c" * 40,
    }
    asked = len(hub.asked)
    push_policy(policy, "me/policy", record)
    assert len(hub.asked) == asked


def test_a_hub_that_refuses_stops_the_run_and_the_next_try_pushes(hub, tmp_path):
    policy, record = made(tmp_path)
    hub.status = 403
    with pytest.raises(RunError, match=r"did not take the policy .* resuming pushes it again"):
        push_policy(policy, "me/policy", record)
    assert not record.exists()
    hub.status = 200
    push_policy(policy, "me/policy", record)
    assert record.exists()


@pytest.mark.usefixtures("hub")
def test_a_wrong_token_is_found_before_anything_runs(tmp_path, monkeypatch, policy_folder, prompts_file):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(RecipeError, match="the Hub cannot be asked who you are"):
        check_recipe(recipe("inpo", policy_folder, prompts_file, output={"push": "me/policy"}), tmp_path)


@pytest.mark.parametrize(
    ("repository", "message"),
    [
        ("policy", "must be owner/name: an owner is missing"),
        ("me/a b", "must be owner/name"),
        ("me/policy", "unset HF_HUB_OFFLINE, or remove output.push"),
    ],
)
def test_without_a_network_or_a_name_nothing_is_begun(repository, message, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    with pytest.raises(RecipeError, match=message):
        check_push(repository)
