"""raft export: a policy as a folder that stands alone, with a card whose numbers are those of the run."""

import base64
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess, run
from threading import Thread
from typing import Any

import numpy as np
import pytest
import worlds
import yaml
from folders import response, write_run
from huggingface_hub import ModelCard

import raft
from raft.core.errors import UserError
from raft.report import export, model_card

TOKEN = "hf_thisIsASecretOfTheUser"
PAGE = Path(__file__).parents[2] / "docs" / "use-your-model.md"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two iterations of which only the first and the last policy are left."""
    folder = tmp_path_factory.mktemp("a machine")
    worlds.make_recipe(
        folder, keep_policies="last", prompts={"per_iteration": 8, "path": str(folder / "prompts.jsonl")}
    )
    assert worlds.raft(folder, "run", "recipe.yaml").returncode == 0
    return folder


@pytest.fixture(scope="module")
def exported(world: Path) -> Path:
    done = worlds.raft(world, "export", "outputs/tiny", "--policy", "last")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("outputs/tiny-export  policy 2 of outputs/tiny"), done.stdout
    return world / "outputs" / "tiny-export"


def logits(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (one.from_pretrained(folder) for one in (AutoModelForCausalLM, AutoTokenizer))
    with torch.no_grad():
        return model(**tokenizer("the red fox 7 sees", return_tensors="pt", return_token_type_ids=False)).logits


def test_an_exported_policy_stands_alone_and_computes_what_the_runs_policy_does(world, exported, tmp_path):
    policy = world / "outputs/tiny/iterations/002/policy"
    shutil.copytree(exported, tmp_path / "elsewhere", symlinks=True)
    shutil.copytree(world / "outputs/tiny", tmp_path / "kept", symlinks=True)
    expected = logits(policy)
    shutil.rmtree(world / "outputs/tiny")
    try:
        assert (logits(tmp_path / "elsewhere") == expected).all()
    finally:
        shutil.copytree(tmp_path / "kept", world / "outputs/tiny", symlinks=True)
    left_out = {"probe.json"}
    added = {"README.md", "recipe.yaml", "reward_curve.png", "reward_curve.csv"}
    names = {file.name for file in policy.iterdir()}
    assert {file.name for file in exported.iterdir()} == (names - left_out) | added
    for name in names - left_out - {"README.md"}:
        assert (exported / name).read_bytes() == (policy / name).read_bytes()


def test_nothing_exported_is_a_link_or_names_a_folder_of_the_machine(world, exported, tmp_path):
    first, _ = export.write(world / "outputs/tiny", tmp_path / "first", 0)  # of the run it is a folder of links
    for folder in (exported, first):
        for file in folder.rglob("*"):
            assert file.is_file() and not file.is_symlink()
            assert (
                str(world).encode() not in file.read_bytes() and str(Path.home() / "").encode() not in file.read_bytes()
            )
    assert (first / "model.safetensors").read_bytes() == (world / "base/model.safetensors").read_bytes()
    assert yaml.safe_load((exported / "recipe.yaml").read_text())["prompts"]["path"] == "prompts.jsonl"


def rewards(world: Path, policy: int, name: str) -> np.ndarray:
    """The mean reward of each held-out prompt, straight from the file."""
    rows = (world / f"outputs/tiny/iterations/00{policy}/evaluation/{name}.jsonl").read_text().splitlines()
    return np.array([np.mean([score["reward"] for score in json.loads(row)["scores"]]) for row in rows])


def test_the_numbers_of_the_card_are_those_of_the_scores(world, exported):
    card = ModelCard.load(exported / "README.md")
    results = {one.metric_name: one.metric_value for one in card.data.eval_results}
    for label, name in (("held-out reward", "scores"), ("gold reward", "gold")):
        before, after = rewards(world, 0, name), rewards(world, 2, name)
        half = 1.96 * np.std(after - before, ddof=1) / np.sqrt(len(before))
        assert results[label] == pytest.approx(after.mean(), abs=1e-12)
        row = re.search(rf"^\| {label} \| (\S+) \| (\S+) \| (\S+) \(± (\S+)\) \| 8 \|$", card.text, re.MULTILINE)
        assert row is not None, card.text
        expected = [before.mean(), after.mean(), (after - before).mean(), half]
        assert [float(one) for one in row.groups()] == pytest.approx(expected, rel=1e-3)


def test_the_card_says_what_was_done_to_which_model(exported):
    card = ModelCard.load(exported / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert card.data.base_model is None  # a folder is no model of the hub
    for said in (
        "policy 0, is `base`", "arXiv:2304.06767", "K = 4 to each of 8 prompts", "- iterations: 2, ", "`best-of-k`",
        "reward: `rule` `letters:share`", "`file` `prompts.jsonl`, 52 of them", "learning_rate `0.001`", "seed `0`",
        "![Rewards of each policy of the run](reward_curve.png)", "licence of the base model",
        "Nothing else was evaluated", "; 8 rows were trained on in the last iteration\n",
    ):  # fmt: skip
        assert said in card.text, said


def test_the_card_of_policy_0_says_of_no_prompts_that_it_learned_from_them(world, tmp_path):
    done = worlds.raft(world, "export", "outputs/tiny", "--policy", "0", "--to", tmp_path / "first")
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "first" / "README.md").read_text()
    assert "\n- prompts: `file` `prompts.jsonl`\n" in card and "to learn from" not in card


def changed(file: Path, change: Callable[[Any], None]) -> None:
    content = yaml.safe_load(file.read_text())
    change(content)
    file.write_text(json.dumps(content) + "\n")


def test_a_model_and_data_of_the_hub_are_named_with_their_commit(world, tmp_path):
    copied = shutil.copytree(world / "outputs/tiny", tmp_path / "tiny", symlinks=True)
    commit = "0123456789abcdef" * 2 + "01234567"
    changed(copied / "resolved.yaml", lambda recipe: recipe["policy"].update(model="owner/base-7b"))
    model = copied / "iterations/000/policy.stamp.json"
    changed(model, lambda stamp: stamp["key"]["section"].update(model=f"commit:{commit}"))
    pool = {"content": f"commit:{commit}", "dataset": "owner/rows"}
    changed(copied / "pool.jsonl.stamp.json", lambda stamp: stamp["key"]["section"].update(pool))
    card = ModelCard.load(export.write(copied, tmp_path / "x", 2)[0] / "README.md")
    assert card.data.base_model == "owner/base-7b" and card.data.datasets == ["owner/rows"]
    assert f"`owner/base-7b` at commit `{commit[:12]}`" in card.text


def test_the_card_names_what_an_earlier_run_trained_the_base_from(world, tmp_path):
    copied = shutil.copytree(world / "outputs/tiny", tmp_path / "tiny", symlinks=True)
    maker, commit = tmp_path / "my-sft", "0123456789abcdef" * 2 + "01234567"
    (maker / "policy").mkdir(parents=True)
    (maker / "run.json").write_text(json.dumps({"job": "sft", "folder": str(tmp_path)}))
    (maker / "resolved.yaml").write_text("job: sft\npolicy: {model: owner/base-7b}\n")
    stamp = json.loads((copied / "iterations/000/policy.stamp.json").read_text())
    stamp["key"]["section"]["model"] = f"commit:{commit}"
    (maker / "start.stamp.json").write_text(json.dumps(stamp))
    changed(copied / "resolved.yaml", lambda recipe: recipe["policy"].update(model=str(maker / "policy")))
    card = ModelCard.load(export.write(copied, tmp_path / "x", 2)[0] / "README.md")
    assert f"policy 0, is `my-sft`, which raft trained from `owner/base-7b` at commit `{commit[:12]}`." in card.text
    assert card.data.base_model == "owner/base-7b"


@pytest.mark.parametrize("path, name", [
    ("/a/b/model", "model"), ("outputs/first/policy", "first"), ("x/rm/reward-model/", "rm"),
    ("outputs/run/iterations/003/policy", "run, policy 3"), ("/x/run/best", "run"),
    ("/x/hub/models--owner--name/snapshots/0123", "owner/name"),
])  # fmt: skip
def test_a_local_model_is_named_by_its_run_or_folder(path: str, name: str):
    assert model_card.local_name(path) == name


@pytest.mark.parametrize("text", ["a`b", "``", "<script>", "| x |", "[a](b)", "a\nb\n# c", "\x1b[2J", "", "x" * 999])
def test_hostile_names_stay_on_one_line_inside_a_code_span(text: str):
    written = model_card.code(text)
    fence = re.match("`+", written)
    assert fence is not None and written.endswith(fence[0]) and "\n" not in written and "\x1b" not in written
    inside = written[len(fence[0]) : -len(fence[0])]
    assert fence[0] not in re.findall("`+", inside) and 0 < len(inside) < 300


def test_secrets_and_places_of_a_recipe_stay_here(world):
    recipe = {
        "policy": {"model": f"{world}/outputs/other/policy"},
        "reward": {"url": "http://user:word@10.0.0.7:8000/v1", "model": "owner/name", "function": f"{world}/f.py:g"},
        "prompts": {"system": f"look into {world}/secret, and/or elsewhere", "items": ["/etc/passwd", 3]},
    }
    cut = model_card.portable(recipe, world / "outputs/tiny")
    assert cut["policy"]["model"] == "other" and cut["prompts"]["items"] == ["passwd", 3]
    assert cut["reward"] == {"url": "...", "model": "owner/name", "function": "f.py:g"}
    assert cut["prompts"]["system"] == "look into secret, and/or elsewhere"


def refused(world: Path, *arguments: str) -> str:
    done = worlds.raft(world, "export", *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr and not done.stdout, done.stderr
    return done.stderr


def test_a_policy_that_was_deleted_or_damaged_is_refused_with_those_that_are_left(world, tmp_path):
    said = refused(world, "outputs/tiny", "--policy", "1", "--to", "never")
    assert "was deleted to save room" in said and "policies that are left: 0, 2 " in said
    assert "has no iteration 9" in refused(world, "outputs/tiny", "--policy", "9", "--to", "never")
    weights = world / "outputs/tiny/iterations/002/policy/model.safetensors"
    before = weights.read_bytes()
    try:
        weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        said = refused(world, "outputs/tiny", "--policy", "2", "--to", "never")
        assert "is damaged" in said and "policies that are left: 0 " in said
        assert export.write(world / "outputs/tiny", tmp_path / "first", 0)[1].number == 0
    finally:
        weights.write_bytes(before)
    assert not (world / "never").exists()


def test_a_folder_with_anything_in_it_is_left_as_it_is(world, exported, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("mine")
    assert "is not empty, and nothing is overwritten" in refused(world, "outputs/tiny", "--to", str(mine))
    assert [file.name for file in mine.iterdir()] == ["file"] and [one.name for one in tmp_path.iterdir()] == ["mine"]
    for to, said in (
        ("outputs/tiny/x", "inside the run"),
        ("no/where", "no such folder"),
        ("recipe.yaml", "not a folder"),
    ):
        assert said in refused(world, "outputs/tiny", "--to", to)
    (tmp_path / "empty").mkdir()
    assert export.write(world / "outputs/tiny", tmp_path / "empty")[0] == tmp_path / "empty"


def test_an_export_that_fails_leaves_nothing(world, tmp_path):
    copied = shutil.copytree(world / "outputs/tiny", tmp_path / "tiny", symlinks=True)
    (copied / "resolved.yaml").write_text("name: [")
    with pytest.raises(UserError, match=r"resolved\.yaml is damaged"):
        export.write(copied, tmp_path / "x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny"]


def test_python_exports_what_the_command_does(world, exported, tmp_path):
    folder = raft.open_run(world / "outputs/tiny").export(tmp_path / "x", policy="last")
    assert folder == tmp_path / "x"
    for file in exported.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes(), file.name


def test_the_models_of_other_jobs_are_exported_and_runs_without_a_model_refused(world, tmp_path):
    rows = [{"prompt": "the red fox ", "chosen": "red", "rejected": "blue"} for _ in range(4)]
    recipe = {
        "name": "rm", "job": "reward-model", "policy": {"model": str(world / "base")},
        "examples": {"kind": "list", "items": rows, "pairs": "columns"},
        "trainer": {"kind": "reward-model", "batch_size": 4, "num_train_epochs": 1},
    }  # fmt: skip
    (tmp_path / "rm.yaml").write_text(yaml.safe_dump(recipe))
    assert worlds.raft(tmp_path, "run", "rm.yaml").returncode == 0
    done = worlds.raft(tmp_path, "export", "outputs/rm")
    assert done.returncode == 0, done.stderr
    card = ModelCard.load(tmp_path / "outputs/rm-export/README.md")
    assert card.data.pipeline_tag == "text-classification" and "It began as `base`" in card.text
    assert "makes one model" in refused(tmp_path, "outputs/rm", "--policy", "1", "--to", "y")


@pytest.mark.nightly
def test_the_blocks_of_the_page_run_on_an_exported_policy(world, exported, tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    shutil.copytree(exported, tmp_path / "outputs/my-run-export")
    (tmp_path / "page.py").write_text(block)
    done = run(
        [sys.executable, "page.py"], cwd=tmp_path, text=True, capture_output=True, env=worlds.ENVIRONMENT, check=False
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


class Hub:
    """What a hub on this machine was sent."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}
        self.commits: list[list[dict[str, Any]]] = []
        self.status = 200
        self.address = ""


@pytest.fixture
def hub() -> Iterator[Hub]:
    """The calls of an upload by LFS: create, validate-yaml, preupload, the batch with its PUT, and commit."""
    held = Hub()

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}" or held.status != 200:
                self.say(
                    {"error": f"no: {self.headers.get('Authorization')}"}, held.status if held.status != 200 else 401
                )
            elif self.path == "/api/repos/create":
                held.created.append(json.loads(body))
                self.say({"url": f"{held.address}/me/mine"})
            elif self.path == "/api/validate-yaml":
                self.say({"warnings": [], "errors": []})
            elif "/preupload/" in self.path:
                modes = {"model.safetensors": "lfs"}
                paths = [file["path"] for file in json.loads(body)["files"]]
                asked = [
                    {"path": path, "uploadMode": modes.get(path, "regular"), "shouldIgnore": False} for path in paths
                ]
                self.say({"files": asked})
            elif self.path.endswith("/info/lfs/objects/batch"):
                upload = {"upload": {"href": f"{held.address}/store"}}
                objects = [{**one, "actions": upload} for one in json.loads(body)["objects"]]
                self.say({"transfer": "basic", "objects": objects})
            else:
                assert self.path == "/api/models/me/mine/commit/main", self.path
                held.commits.append([json.loads(line) for line in body.splitlines()])
                self.say({"commitUrl": f"{held.address}/me/mine/commit/1", "commitOid": "1" * 40})

        def do_PUT(self) -> None:
            held.stored[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
            self.say({})

        def say(self, content: object, status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *said: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as serving:
        Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
        held.address = f"http://127.0.0.1:{serving.server_port}"
        yield held
        serving.shutdown()


def push(world: Path, hub: Hub, to: Path, *arguments: str, token: str | None = TOKEN) -> CompletedProcess[str]:
    """The command with a hub on this machine; the large files go by LFS, for which the hub's other protocol is off."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(to.parent / "home"),
    }
    environment = {name: value for name, value in environment.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-m", "raft", "export", "outputs/tiny", "--policy", "2", "--to", str(to), *arguments]
    return run(command, cwd=world, text=True, capture_output=True, env=environment, check=False)


def test_an_upload_is_private_whole_and_keeps_the_token_to_itself(world, exported, hub, tmp_path):
    done = push(world, hub, tmp_path / "x", "--push", "me/mine")
    assert done.returncode == 0 and f"uploaded to {hub.address}/me/mine" in done.stdout, done.stderr
    assert [(one["name"], one["organization"], one["visibility"]) for one in hub.created] == [("mine", "me", "private")]
    (commit,) = hub.commits
    sent = {row["value"]["path"]: row["value"] for row in commit if row["key"] in ("file", "lfsFile")}
    assert sent.keys() == {file.name for file in (tmp_path / "x").iterdir()}
    for name, value in sent.items():
        content = (tmp_path / "x" / name).read_bytes()
        if "content" in value:
            assert base64.b64decode(value["content"]) == content
        else:
            assert value["oid"] == hashlib.sha256(content).hexdigest() and hub.stored["/store"] == content
        assert TOKEN.encode() not in content
    assert TOKEN not in done.stdout + done.stderr


def test_a_hub_that_refuses_leaves_the_folder_and_says_how_to_go_on(world, hub, tmp_path):
    hub.status = 403
    done = push(world, hub, tmp_path / "x", "--push", "me/mine")
    assert done.returncode == 2 and "Traceback" not in done.stderr and TOKEN not in done.stdout + done.stderr
    assert "the token may not write there (status 403)" in done.stderr and "hf upload me/mine" in done.stderr
    assert (tmp_path / "x/model.safetensors").exists()


@pytest.mark.parametrize("name, token, said", [("me/mine", None, "nobody is logged in"), ("mine", TOKEN, "OWNER/NAME")])
def test_an_upload_that_cannot_begin_is_refused_before_anything_is_written(world, hub, tmp_path, name, token, said):
    done = push(world, hub, tmp_path / "x", "--push", name, token=token)
    assert done.returncode == 2 and said in done.stderr and not (tmp_path / "x").exists()


def outputs(run: Path, file: Path, which: Any = "last") -> list[dict[str, str]]:
    export.alpaca_eval(run, file, which)
    return json.loads(file.read_text(encoding="utf-8"))


def test_every_held_out_prompt_is_once_in_the_file_for_alpaca_eval_with_its_first_answer(world, tmp_path):
    done = worlds.raft(world, "export", "outputs/tiny", "--policy", "1", "--alpaca-eval", tmp_path / "outputs.json")
    assert done.returncode == 0 and "the first answer of policy 1 to each of 8 held-out prompts" in done.stdout
    assert not (world / "outputs/tiny/iterations/001/policy").exists()  # its answers outlive its weights
    run = world / "outputs/tiny"
    prompts, answers = (
        [json.loads(line) for line in (run / name).read_text().splitlines()]
        for name in ("evaluation.jsonl", "iterations/001/evaluation/responses.jsonl")
    )
    assert json.loads((tmp_path / "outputs.json").read_text()) == [
        {"instruction": prompt["text"], "output": row["responses"][0]["text"], "generator": "tiny-policy-1"}
        for prompt, row in zip(prompts, answers, strict=True)
    ]


HOSTILE = '"\\\n\x1b[2J\u202e\u0000</script>,\u2028 大きさ 😀 {{7*7}}'


def test_hostile_text_survives_and_a_chat_is_its_turns_without_the_system_message(tmp_path):
    run = write_run(tmp_path / "run", 1, 2, 1, lambda policy, n, k: f"{HOSTILE}{policy}{n}{k}", lambda *_: 1.0)
    (run / "iterations/001/evaluation/responses.jsonl").write_text(
        "".join(
            json.dumps({"prompt_id": f"h{n}", "responses": [response(text).row(), response("second").row()]}) + "\n"
            for n, text in enumerate([HOSTILE, "", "b", "c"])
        )
    )
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": HOSTILE}
    chats = [
        [user],
        [system, user],
        [system, user, {"role": "assistant", "content": "Yes"}, {"role": "user", "content": "Why?"}],
        [system],
    ]
    with open(run / "evaluation.jsonl", "w") as file:
        for n, messages in enumerate(chats):
            print(json.dumps({"id": f"h{n}", "messages": messages, "meta": {"dataset": "own"} if n else {}}), file=file)
    rows = outputs(run, tmp_path / "outputs.json")
    assert [row["instruction"] for row in rows] == [
        HOSTILE,
        HOSTILE,
        f"user: {HOSTILE}\n\nassistant: Yes\n\nuser: Why?",
        "Be brief.",
    ]
    assert [row["output"] for row in rows] == [HOSTILE, "", "b", "c"]
    assert [row.get("dataset") for row in rows] == [None, "own", "own", "own"]
    done = worlds.raft(tmp_path, "export", "run", "--alpaca-eval", "again.json")
    assert done.returncode == 0 and "1 of them are empty" in done.stderr and "1 instructions are there" in done.stderr
    assert json.loads((tmp_path / "again.json").read_text()) == rows


def test_answers_that_are_not_there_and_files_that_are_are_refused(world, tmp_path):
    (tmp_path / "mine.json").write_text("mine")
    run = tmp_path / "run"
    write_run(run, 1, 2, 1, lambda *_: "x", lambda *_: 1.0)
    (run / "iterations/001/evaluation/responses.jsonl.stamp.json").unlink()
    for words, arguments in (
        ("exists, and nothing is overwritten", ["run", "--policy", "0", "--alpaca-eval", "mine.json"]),
        ("policy 1 has no held-out answers (evaluation.every); policies that have: 0",
         ["run", "--policy", "1", "--alpaca-eval", "new.json"]),
        ("lies inside the run", ["run", "--policy", "0", "--alpaca-eval", "run/new.json"]),
        ("leave --to and --push out", ["run", "--alpaca-eval", "new.json", "--to", "x"]),
    ):  # fmt: skip
        done = worlds.raft(tmp_path, "export", *arguments)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "mine.json").read_text() == "mine" and not (tmp_path / "new.json").exists()


def test_the_card_says_what_is_put_around_each_prompt():
    assert model_card._frame({"kind": "file", "path": "p.jsonl", "suffix": " ", "format": "text", "system": None}) == (
        "; each with format `text`, suffix `' '`"
    )
    assert model_card._frame({"kind": "file", "path": "p.jsonl"}) == model_card._frame(None) == ""
