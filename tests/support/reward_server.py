"""A real server that computes with a tiny reward model in vLLM's dialect, and lies when it is told to."""

import base64
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from raft.rewards.model import RewardModel

Change = Callable[[torch.Tensor], torch.Tensor]


class RewardServer(ThreadingHTTPServer):
    """Gives the outputs of the reward model in a folder; `requests` holds what it was asked.

    `change` is what it does to the outputs; one that is `deaf` to use_activation gives probabilities always.
    """

    def __init__(self, folder: Path, change: Change = lambda outputs: outputs, deaf: bool = False, context: int = 256):
        super().__init__(("127.0.0.1", 0), Handler)
        self.runner = RewardModel(model=str(folder), label=0).runner
        self.change, self.deaf, self.context, self.cut = change, deaf, context, 0
        self.requests: list[dict] = []
        self.computing = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is part of these tests."""

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    @property
    def scored(self) -> list[list[int]]:
        """The conversations that were asked for behind the two texts of the probe, which are asked twice."""
        return [row for asked in self.requests[2:] for row in asked["input"]]

    def answer(self, asked: dict) -> dict:
        with self.computing:
            self.requests.append(asked)
            outputs = self.change(torch.tensor(self.runner.read_together([tuple(row) for row in asked["input"]])))
        if asked["use_activation"] or self.deaf:
            outputs = outputs.sigmoid() if outputs.shape[1] == 1 else outputs.softmax(1)
        coded = [base64.b64encode(row.numpy().astype("<f4").tobytes()).decode() for row in outputs]
        data = [{"index": at, "object": "pooling", "data": row} for at, row in enumerate(coded)]
        read = sum(map(len, asked["input"])) - self.cut
        return {"object": "list", "data": data[::-1], "usage": {"prompt_tokens": read}}  # in an order of its own


class Handler(BaseHTTPRequestHandler):
    server: RewardServer

    def log_message(self, *words: object) -> None:
        """Silence."""

    def do_GET(self) -> None:
        self.reply({"data": [{"id": "tiny", "owned_by": "vllm", "max_model_len": self.server.context}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = self.path == "/pooling" and asked["model"] == "tiny" and asked["task"] == "classify"
        self.reply(self.server.answer(asked) if known else {"detail": "Not Found"}, 200 if known else 404)

    def reply(self, body: dict, status: int = 200) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())
