"""A real server on this machine that computes with a tiny real model, and misbehaves when it is told to.

It speaks vLLM's dialect of OpenAI's protocol, or the plain one.
"""

import json
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from raft.core.records import Policy, Prompt
from raft.generators.transformers import Drawing, Transformers, load
from raft.models.chat_templates import encode_prompt


class TinyServer(ThreadingHTTPServer):
    """Answers with the policy at `policy`; `faults` holds what to do instead, one for each coming request for text."""

    daemon_threads = False  # closing waits for every request
    request_queue_size = 64

    def __init__(self, policy: Policy, owner: str = "vllm") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.loaded, self.owner = load(policy.path, "float32", "cpu"), owner
        self.faults: deque = deque()
        self.requests: list[dict] = []
        self.times: list[float] = []
        self.headers: list[dict] = []
        self.busy, self.most_busy, self.counting, self.computing = 0, 0, threading.Lock(), threading.Lock()
        self.hold, self.closing = threading.Event(), False  # a request that hangs goes on when `hold` is set
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is part of these tests."""

    def answer(self, path: str, asked: dict) -> dict:
        chat = path.endswith("chat/completions")
        tokenizer = self.loaded.tokenizer
        source = asked["messages"] if chat else asked["prompt"]
        ids = (
            source
            if isinstance(source, list) and not chat
            else encode_prompt(tokenizer, Prompt(id="", messages=source) if chat else Prompt(id="", text=source))
        )
        choice = {"index": 0, **(self.probe(ids) if asked.get("prompt_logprobs") is not None else {})}
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "stop")
        options = {name: asked[name] for name in names if name in asked and (name != "top_k" or asked[name])}
        with self.computing:
            drawing = Drawing(Transformers(k=1, **options), self.loaded, [asked.get("seed", 0)])
            drawing.run([ids])
        response = next(drawing.responses())
        choice |= {"message": {"role": "assistant", "content": response.text}} if chat else {"text": response.text}
        choice["finish_reason"] = response.finish_reason
        if self.owner == "vllm" and asked.get("return_token_ids"):
            choice["token_ids"] = response.token_ids
            each = [{"token": "?", "logprob": logprob} for logprob in response.logprobs]
            choice["logprobs"] = {"content": each} if chat else {"token_logprobs": response.logprobs}
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids)}}

    def probe(self, ids: list[int]) -> dict:
        rows = logprobs_of(self.loaded.model, ids)
        table = [{str(token): {"logprob": row, "rank": 1}} for token, row in zip(ids[1:], rows, strict=True)]
        return {"prompt_logprobs": [None, *table]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds that a connection may say nothing: a test that failed must not keep the server from closing
    server: TinyServer

    def log_message(self, *words) -> None:
        """Silence."""

    def do_GET(self) -> None:
        size = {"max_model_len": 64} if self.server.owner == "vllm" else {}
        models = [{"id": "tiny", "owned_by": self.server.owner, **size}, {"id": "large", "owned_by": "x"}]
        listed = self.server.owner != "nobody"
        self.reply(200 if listed else 404, {"data": models} if listed else {"detail": "Not Found"})

    def do_POST(self) -> None:
        asked, server = json.loads(self.rfile.read(int(self.headers["Content-Length"]))), self.server
        with server.counting:
            server.requests.append(asked)
            server.times.append(time.monotonic())
            server.headers.append(dict(self.headers))
            fault = server.faults.popleft() if server.faults else None
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
        try:
            if fault is None or not fault(self):
                self.reply(200, server.answer(self.path, asked))
        finally:
            with server.counting:
                server.busy -= 1

    def reply(self, status: int, body: object, **headers: str) -> bool:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)
        return True


def fail(status: int, message: str = "out of order", **headers: str):
    return lambda handler: handler.reply(status, {"error": {"message": message}}, **headers)


def malformed(handler: Handler) -> bool:
    return handler.reply(200, b'{"choices": [')


def cut(handler: Handler) -> bool:
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')
    handler.close_connection = True
    return True


def hang(handler: Handler) -> bool:
    handler.server.hold.wait(20)
    return handler.server.closing


def logprobs_of(model, ids: list[int]) -> list[float]:
    """The log-probability of each token but the first, given those before it."""
    with torch.no_grad():
        table = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return table.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
