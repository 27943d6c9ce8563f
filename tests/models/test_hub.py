"""Laws of raft.models.hub, on folders and a hub cache made here; nothing is fetched."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from raft.core.errors import UserError
from raft.models import hub

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40
TOKEN = "hf_thisIsASecretOfTheUser"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a snapshot in an empty cache, as huggingface_hub leaves it, while the hub is out of reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def snapshot(repo: str, files: list[str], commit: str = COMMIT, branch: str = "main") -> Path:
        folder = tmp_path / "hub" / repo / "snapshots" / commit
        write(folder, dict.fromkeys(files, "{}"))
        write(tmp_path / "hub" / repo / "refs", {branch: commit})
        return folder

    return snapshot


@dataclass
class Server:
    """What a hub holds and what has been fetched from it."""

    files: list[str] = field(
        default_factory=lambda: [
            "config.json", "model.safetensors", "tokenizer.model", "chat_template.jinja", "merges.txt", "README.md",
            "modeling_own.py", "pytorch_model.bin", "training_args.bin", "optimizer.pt", "words.pkl",
            "original/params.json", "onnx/model.safetensors",
        ]
    )  # fmt: skip
    fetched: list[str] = field(default_factory=list)


@pytest.fixture
def server(cache: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A hub on this machine, with one repository."""
    hosted = Server()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            if "tree" in parts:
                self.say([{"type": "file", "path": name, "size": 2, "oid": name} for name in hosted.files])
            elif "resolve" in parts:
                hosted.fetched.append("/".join(parts[parts.index("resolve") + 2 :]))
                self.say({}, {"ETag": f'"{hosted.fetched[-1]}"', "X-Repo-Commit": COMMIT})
            elif "name" in parts and "v9" not in parts:
                self.say({"id": "owner/name", "sha": COMMIT, "siblings": []})
            else:
                code = "GatedRepo" if "gated" in parts else "RepoNotFound"
                self.refuse("RevisionNotFound" if "v9" in parts else code)

        do_HEAD = do_GET

        def say(self, content: object, headers: dict[str, str] | None = None) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def refuse(self, code: str) -> None:
            self.send_response(403 if code == "GatedRepo" else 404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *said: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as serving:
        Thread(target=serving.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        here = f"http://127.0.0.1:{serving.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", here)
        resolve = here + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", resolve)
        yield hosted
        serving.shutdown()


def test_a_hub_model_is_fetched_once_and_only_what_is_needed(server: Server, monkeypatch: pytest.MonkeyPatch):
    folder = hub.locate_model("owner/name")
    assert hub.identity(folder) == f"commit:{COMMIT}"
    wanted = {"config.json", "model.safetensors", "tokenizer.model", "chat_template.jinja", "merges.txt"}
    assert set(server.fetched) == wanted == {file.name for file in folder.iterdir()}
    server.fetched.clear()
    assert hub.locate_model("owner/name") == folder
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.locate_model("owner/name") == folder
    assert server.fetched == []


def test_of_a_model_that_is_served_elsewhere_no_weights_are_fetched(server: Server):
    folder = hub.locate_model("owner/name", weights=False)
    assert hub.identity(folder) == f"commit:{COMMIT}"
    assert set(server.fetched) == {"config.json", "tokenizer.model", "chat_template.jinja", "merges.txt"}
    assert (hub.locate_model("owner/name") / "model.safetensors").exists()  # all the same, where they are needed


def test_a_model_is_described_without_its_weights_if_the_hub_answers(server: Server, monkeypatch: pytest.MonkeyPatch):
    assert hub.described("owner/unknown") is None
    folder = hub.described("owner/name")
    assert folder is not None and "model.safetensors" not in server.fetched and (folder / "config.json").exists()
    server.fetched.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.described("owner/name") == folder and hub.described("owner/other") is None
    assert server.fetched == []


def test_old_weights_are_fetched_only_where_there_are_no_others(server: Server):
    server.files.remove("model.safetensors")
    hub.locate_model("owner/name")
    assert "pytorch_model.bin" in server.fetched
    assert not {"training_args.bin", "modeling_own.py", "optimizer.pt", "words.pkl"} & set(server.fetched)


def test_the_commit_of_a_data_set_is_asked_for_without_its_rows(server: Server):
    assert hub.dataset_commit("owner/name") == COMMIT and set(server.fetched) <= {"README.md"}


@pytest.mark.parametrize(
    "name, revision, why",
    [
        ("owner/none", None, "the hub shows none of that name; check the spelling, set HF_TOKEN"),
        ("owner/gated", None, "is gated: accept its terms on its page and set HF_TOKEN"),
        ("owner/name", "v9", "the hub has no such revision"),
    ],
)
def test_a_refusal_of_the_hub_says_what_to_do_and_keeps_the_token_secret(
    server: Server, name: str, revision: str | None, why: str
):
    with pytest.raises(UserError) as fault:
        hub.locate_model(name, revision)
    assert why in str(fault.value) and f"model {name}" in str(fault.value) and TOKEN not in str(fault.value)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def test_a_model_folder_is_itself(tmp_path: Path):
    folder = write(tmp_path / "model", {"config.json": "{}"})
    assert hub.locate_model(str(folder)) == folder


def test_a_folder_without_a_configuration_is_no_model(tmp_path: Path):
    folder = write(tmp_path / "model", {"notes.txt": ""})
    with pytest.raises(UserError, match=f"{folder} holds no config.json"):
        hub.locate_model(str(folder))


@pytest.mark.parametrize("name", ["models/mine/last", "./mine", "/mine", "gpt2", "owner/", "...", "~/model", "a b/c"])
def test_what_is_neither_a_folder_nor_a_name_is_never_asked_for(name: str, cache: Callable[..., Path]):
    with pytest.raises(UserError, match=r"no folder at .*; give a model folder, or owner/name"):
        hub.locate_model(name)


def test_a_cached_model_is_used_without_the_hub(cache: Callable[..., Path]):
    folder = cache("models--owner--name", ["config.json", "model.safetensors"])
    assert hub.locate_model("owner/name") == folder
    assert hub.locate_model("owner/name", "main") == hub.locate_model("owner/name", COMMIT) == folder
    assert hub.identity(folder) == f"commit:{COMMIT}"


def test_each_revision_is_its_own_commit(cache: Callable[..., Path]):
    cache("models--owner--name", ["config.json", "model.safetensors"])
    cache("models--owner--name", ["config.json", "model.safetensors"], OTHER, "v2")
    identities = [hub.identity(hub.locate_model("owner/name", revision)) for revision in (None, "v2", COMMIT, OTHER)]
    assert identities == [f"commit:{one}" for one in (COMMIT, OTHER, COMMIT, OTHER)]


def test_a_cached_model_with_old_weights_alone_is_used_too(cache: Callable[..., Path]):
    folder = cache("models--owner--name", ["config.json", "pytorch_model.bin"])
    assert hub.locate_model("owner/name") == folder


@pytest.mark.parametrize("revision", [None, "v9"])
def test_a_model_that_cannot_be_had_says_what_to_do_and_keeps_the_token_secret(
    cache: Callable[..., Path], revision: str | None
):
    with pytest.raises(UserError) as fault:
        hub.locate_model("owner/none", revision)
    said = str(fault.value)
    assert "model owner/none" in said and (revision or "") in said
    assert "HF_HUB_OFFLINE is set" in said and "hf download owner/none" in said and "model folder" in said
    assert TOKEN not in said


def test_a_hub_that_does_not_answer_is_told_without_its_address(
    cache: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://user:secret@127.0.0.1:9")
    with pytest.raises(UserError, match=r"model owner/none: .*the hub could not be reached \(\w+\)") as fault:
        hub.locate_model("owner/none")
    assert "secret" not in str(fault.value)


def test_the_commit_of_a_data_set_is_that_of_its_branch(cache: Callable[..., Path]):
    cache("datasets--owner--rows", ["README.md"])
    assert hub.dataset_commit("owner/rows") == COMMIT
    assert hub.dataset_identity("owner/rows") == f"commit:{COMMIT}"
    with pytest.raises(UserError, match="dataset owner/rows at revision v2"):
        hub.dataset_commit("owner/rows", "v2")


def test_the_identity_of_a_file_is_the_hash_of_its_bytes(tmp_path: Path):
    write(tmp_path, {"a.jsonl": "x" * 100_000, "b.jsonl": "x" * 100_000})
    expected = f"sha256:{hashlib.sha256(b'x' * 100_000).hexdigest()}"
    assert hub.identity(tmp_path / "a.jsonl") == hub.identity(tmp_path / "b.jsonl") == expected


def test_the_identity_of_a_folder_is_that_of_its_files_wherever_it_stands(tmp_path: Path):
    files = {"config.json": "{}", "model.safetensors": "w", "tokens/vocab.txt": "v"}
    one, other = write(tmp_path / "one", files), write(tmp_path / "other", files)
    (tmp_path / "link").symlink_to(one)
    assert hub.identity(one) == hub.identity(other) == hub.identity(tmp_path / "link")
    write(other, {"README.md": "words", ".hidden": "x", ".cache/x": "y"})
    assert hub.identity(one) == hub.identity(other)


@pytest.mark.parametrize(
    "change", [{"config.json": "[]"}, {"added.json": ""}, {"a/config.json": "{}"}], ids=["bytes", "file", "nested"]
)
def test_any_change_of_a_folder_changes_its_identity(tmp_path: Path, change: dict[str, str]):
    folder = write(tmp_path / "model", {"config.json": "{}", "weights": "w"})
    before = hub.identity(folder)
    write(folder, change)
    assert hub.identity(folder) != before


def test_a_renamed_file_changes_the_identity_of_its_folder(tmp_path: Path):
    folder = write(tmp_path / "model", {"config.json": "{}", "weights": "w"})
    before = hub.identity(folder)
    (folder / "weights").rename(folder / "heights")
    assert hub.identity(folder) != before


def test_a_file_is_read_again_only_if_it_changed(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    write(tmp_path, {"rows.jsonl": "a"})
    first, status = hub.identity(path), path.stat()
    write(tmp_path, {"rows.jsonl": "b"})
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert hub.identity(path) == first
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert hub.identity(path) != first


def test_a_folder_of_a_run_whose_files_are_links_is_known_by_what_they_hold(tmp_path: Path):
    model = write(tmp_path / "model", {"config.json": "{}", "weights": "w"})
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in model.iterdir():
        (linked / file.name).symlink_to(file)
    assert hub.identity(linked) == hub.identity(model)


def test_what_is_not_there_has_no_identity(tmp_path: Path):
    with pytest.raises(UserError, match=f"no file or folder at {tmp_path}/none"):
        hub.identity(tmp_path / "none")


def test_a_check_asks_the_hub_only_whether_it_has_a_name_and_fetches_nothing(server: Server):
    assert hub.fault_of_name("owner/name", None, "model") is None
    assert hub.fault_of_name("owner/name", None, "dataset") is None
    assert "the hub shows none of that name" in (hub.fault_of_name("owner/nam", None, "model") or "")
    assert "dataset owner/nam: no such folder" in (hub.fault_of_name("owner/nam", None, "dataset") or "")
    assert "no such revision" in (hub.fault_of_name("owner/name", "v9", "model") or "")
    assert "is gated" in (hub.fault_of_name("owner/gated", None, "model") or "")
    assert server.fetched == []


def test_a_hub_that_is_out_of_reach_has_no_fault_to_tell(cache: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    assert hub.fault_of_name("owner/nam", None, "model") is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(hub.Unanswered, match=r"model owner/nam was not checked: the hub did not answer"):
        hub.fault_of_name("owner/nam", None, "model")
