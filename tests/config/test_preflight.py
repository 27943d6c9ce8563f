"""What raft check says of the files that a recipe names, before anything is started."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import worlds

from raft.config.preflight import check, unreached
from raft.config.recipe import RecipeError, load

DAMAGED = {
    "config.json": [
        (b'{"model_type": "llama", ', "is not JSON"),
        (b"\xff{}", "not UTF-8"),
        (b"[1]", "not a mapping but list"),
    ],
    "tokenizer_config.json": [(b"", "is not JSON"), (b'"x"', "not a mapping but str")],
}


@pytest.mark.parametrize(
    ("file", "content", "words"), [(file, *one) for file, several in DAMAGED.items() for one in several]
)
def test_a_damaged_file_of_a_model_is_named(tmp_path: Path, monkeypatch, file: str, content: bytes, words: str):
    recipe = worlds.make_recipe(tmp_path, prompts={"format": "chat"})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base" / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "base" / file).write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        check(load(recipe))
    (fault,) = caught.value.faults
    assert fault.key == "policy.model" and words in fault.message and f"base/{file}" in fault.message


def test_a_server_that_does_not_answer_is_a_warning_of_raft_check(tmp_path: Path, monkeypatch):
    judge = {"kind": "judge", "model": "x", "mode": "grade", "max_tokens": 8}
    heard, silent = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler), "http://127.0.0.1:1/v1"
    threading.Thread(target=heard.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{heard.server_port}/v1"  # it has no such page, and that is an answer
    monkeypatch.chdir(tmp_path)
    recipe = load(
        worlds.make_recipe(tmp_path, reward={**judge, "url": [url, silent]}, evaluation={"gold": None})
    ).recipe
    (said,) = unreached(recipe)
    assert said.startswith(f"reward.url: no answer from {silent} (ConnectError); start that server before the run")
    heard.shutdown()
