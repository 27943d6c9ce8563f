"""What raft check says of the files that a recipe names, before anything is started."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import reward_models
import worlds

from raft.config.preflight import at_start, check, unreached
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


def test_a_learning_rate_that_was_chosen_for_another_kind_of_trainer_is_a_warning_of_check_and_run(tmp_path: Path):
    worlds.make_recipe(tmp_path, iterations=1, evaluation={"kl": False, "gold": None})  # its rate is for sft: 1e-3
    other = ["recipe.yaml", "trainer.kind=policy-gradient", "selection={kind: advantage}"]
    words = "trainer.kind: policy-gradient is 1e-06; give trainer.learning_rate=1e-06"
    for command in ("check", "run"):
        (line,) = [line for line in worlds.raft(tmp_path, command, *other).stdout.splitlines() if words in line]
        assert line.lstrip().startswith("warning: trainer.learning_rate: ")
    for silent in ([*other, "trainer.learning_rate=0.002"], ["recipe.yaml", "trainer.kind=sft"]):
        done = worlds.raft(tmp_path, "check", *silent, "name=other")
        assert done.returncode == 0 and "learning_rate" not in done.stdout


def test_a_key_that_the_environment_lacks_is_a_warning_at_the_start_of_a_run(tmp_path: Path, monkeypatch):
    judge = {"kind": "judge", "model": "x", "mode": "grade", "max_tokens": 8, "url": "http://127.0.0.1:1/v1"}
    loaded = load(worlds.make_recipe(tmp_path, reward={**judge, "api_key_env": "JUDGE_KEY"}))
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    assert [*at_start(loaded)] == ["reward.api_key_env: the environment has no JUDGE_KEY, so no key will be sent"]
    monkeypatch.setenv("JUDGE_KEY", "secret")
    assert [*at_start(loaded)] == []


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


def test_a_server_that_lacks_the_model_is_a_warning_of_raft_check(tmp_path: Path, monkeypatch):
    class Lists(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"data": [{"id": "judge"}, {"id": "other"}]}')

    heard = HTTPServer(("127.0.0.1", 0), Lists)
    threading.Thread(target=heard.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{heard.server_port}/v1"
    monkeypatch.chdir(tmp_path)
    for model, said in (("jugde", [f"reward.model: {url} has no model 'jugde'; did you mean judge?"]), ("judge", [])):
        judge = {"kind": "judge", "model": model, "mode": "grade", "max_tokens": 8, "url": url}
        loaded = load(worlds.make_recipe(tmp_path, reward=judge, evaluation={"gold": None}))
        assert [one.split("? allowed")[0] + "?" * bool(one) for one in unreached(loaded.recipe)] == said
    heard.shutdown()


def test_a_column_that_is_not_there_is_one_fault(tmp_path: Path, monkeypatch):
    recipe = worlds.make_recipe(tmp_path, prompts={"prompt_column": "promt"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        check(load(recipe))
    (fault,) = caught.value.faults
    assert fault.key == "prompts" and "no column promt" in fault.message


def test_a_language_model_in_the_place_of_a_reward_model_is_refused_wherever_it_stands(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lm = {"kind": "model", "model": "base", "template": "plain"}
    reward = {"kind": "ensemble", "members": {"one": lm, "token": {**lm, "head": "token", "label": 5}}}
    recipe = worlds.make_recipe(tmp_path, reward=reward, evaluation={"gold": {**lm, "url": "http://127.0.0.1:1/v1"}})
    with pytest.raises(RecipeError) as caught:
        check(load(recipe))
    found = {fault.key: fault.message for fault in caught.value.faults}
    assert set(found) == {"reward.members.one.model", "evaluation.gold.model"}
    assert "base is a LlamaForCausalLM without the head of a reward model" in found["reward.members.one.model"]
    assert "vLLM's server computes only" in found["evaluation.gold.model"]


def test_a_reward_model_with_several_outputs_has_to_be_told_which_is_the_reward(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = {"num_labels": 2, "id2label": {0: "kind", 1: "true"}, "label2id": {"kind": 0, "true": 1}}
    for name, labels in (("plain", {"num_labels": 2}), ("named", named)):
        reward_models.save(tmp_path / name, "LlamaForSequenceClassification", **reward_models.SIZE, **labels)
    found = {}
    for name, label in (("plain", None), ("plain", 1), ("plain", 2), ("named", "true"), ("named", "false")):
        reward = {"kind": "model", "model": name, "template": "plain", "label": label}
        try:
            check(load(worlds.make_recipe(tmp_path, reward=reward)))
        except RecipeError as caught:
            found[name, label] = caught.faults[0].message
    assert {key: message.split(", but ")[0] for key, message in found.items()} == {
        ("plain", None): "reward.label is not given",
        ("plain", 2): "reward.label is 2",
        ("named", "false"): "reward.label is false",
    }
    assert found["named", "false"].endswith("has 2 outputs; allowed: 0 to 1, or kind, true")


def test_the_head_of_a_reward_model_is_looked_for_without_torch(tmp_path: Path):
    recipe = worlds.make_recipe(tmp_path, reward={"kind": "model", "model": "base", "template": "plain"})
    script = (
        "import sys; from pathlib import Path; from raft.config import preflight, recipe\n"
        f"try: preflight.check(recipe.load(Path({str(recipe)!r})))\n"
        "except recipe.RecipeError as fault: print(fault)\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "without the head of a reward model" in done.stdout, done.stderr
