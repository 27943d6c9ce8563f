"""A mirrored run: stamped there only when whole, continued elsewhere to the same bytes, completed after any failure."""

import hashlib
import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import s3fs
import worlds
from s3_server import S3Server, serving

from raft.cli.forecast import Quiet
from raft.config import preflight, recipe
from raft.config.jobs import MUTABLE_KEYS, Store
from raft.core.errors import UserError
from raft.core.remote_folder import RemoteFolder, fault_of_trial, fault_of_url
from raft.pipeline import loop
from raft.store import mirror, stamps
from raft.store.mirror import mirrored, pull
from raft.store.runs import Run

SMALL: dict[str, Any] = {
    "prompts": {"per_iteration": 4}, "generator": {"k": 2, "max_tokens": 6}, "keep_policies": "last",
    "evaluation": {"count": 4, "k": 2, "kl": False, "gold": None},
}  # fmt: skip


class Heard(Quiet):
    """Keeps the notices of a run; raises at the end of iteration `cut`."""

    def __init__(self, cut: int | None = None):
        super().__init__()
        self.notices: list[str] = []
        self.cut = cut

    def on_notice(self, message: str) -> None:
        self.notices.append(message)

    def on_iteration_end(self, it: Any, alerts: Any) -> None:
        if it.number == self.cut:
            raise InterruptedError


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with serving() as one:
        yield one


@pytest.fixture(autouse=True)
def quick(server, monkeypatch) -> Iterator[None]:
    """No pauses between attempts; a server that refuses nothing, and a law that was kept."""
    monkeypatch.setattr(mirror, "PAUSES", ())
    server.refuses = lambda method, key: False
    server.requests.clear()
    yield
    assert server.broken == []


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    worlds.make_recipe(folder, **SMALL)
    return folder


def placed(world: Path, to: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a world on what stands for another machine, which is the current folder."""
    shutil.copytree(world, to, symlinks=True)
    monkeypatch.chdir(to)
    return to


def run(*overrides: str, cut: int | None = None) -> Heard:
    heard = Heard(cut)
    loop.run(recipe.load(Path("recipe.yaml"), overrides), heard)
    return heard


@pytest.fixture(scope="module")
def finished(world, server, one_thread, tmp_path_factory) -> tuple[Path, Heard]:
    """A run that was never interrupted, whose mirror is a bucket that does not exist; and what was said of that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror, "PAUSES", (0.01,))
        folder = placed(world, tmp_path_factory.mktemp("finished") / "world", patch)
        heard = run("store.mirror=s3://nowhere")
    return folder, heard


def upload(folder: Path, url: str) -> list[str]:
    """What a process says that has nothing to make in a run, and uploads it."""
    said: list[str] = []
    with mirrored(Run(folder, 0), Store(mirror=url), said.append):
        pass
    return said


def artifacts(folder: Path) -> dict[str, Any]:
    return {path.relative_to(folder).as_posix(): stamp for path, stamp in stamps.stamped(folder)}


def test_a_run_that_is_pulled_into_an_empty_folder_goes_on_to_the_bytes_of_one_that_was_never_interrupted(
    world, finished, server, tmp_path, monkeypatch
):
    whole = worlds.fingerprint(finished[0] / "outputs" / "tiny")
    url = server.make("continued")
    placed(world, tmp_path / "one", monkeypatch)
    with pytest.raises(InterruptedError):
        run(f"store.mirror={url}/runs", cut=1)
    first = placed(world, tmp_path / "two", monkeypatch) / "outputs" / "tiny"
    assert pull(f"{url}/runs/tiny") == (Path("outputs/tiny"), len(artifacts(tmp_path / "one" / "outputs" / "tiny")), 0)
    assert "iterations/002/prompts.jsonl" not in artifacts(first) and (first / "recipe.yaml").exists()
    heard = run(f"store.mirror={url}/runs")
    assert [notice for notice in heard.notices if "mirror" in notice or "runs/tiny" in notice] == [
        f"all of it is in {url}/runs/tiny; elsewhere, raft pull {url}/runs/tiny brings it back"
    ]
    made = worlds.fingerprint(first)
    assert {name: made[name] for name in whole} == whole
    there = server.files("continued", "runs/tiny/")
    assert json.loads(there["iterations/001/policy.stamp.json"])["pruned"]  # keep_policies: last
    assert not [name for name in there if name.startswith("iterations/001/policy/")]
    assert {name: there[name] for name in whole} == whole  # metrics.jsonl among them
    assert any(name.startswith("logs/") or name == "run.json" for name in there)

    placed(world, tmp_path / "three", monkeypatch)
    pull(f"{url}/runs/tiny")
    stamped = artifacts(tmp_path / "three" / "outputs" / "tiny")
    assert stamped == artifacts(first)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "three").rglob("*.stamp.json")}
    run(f"store.mirror={url}/runs")
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing was made again


def test_a_mirror_that_fails_costs_nothing_but_a_notice_and_the_next_run_completes_it(finished, server, monkeypatch):
    folder, heard = finished
    assert [notice for notice in heard.notices if "the mirror is behind: s3://nowhere/tiny cannot be written" in notice]
    lacks = heard.notices[-1].partition("s3://nowhere/tiny lacks ")[2]
    count = len(artifacts(folder / "outputs" / "tiny"))
    assert lacks.startswith("doctor.jsonl, evaluation.jsonl, pool.jsonl, ") and f" and {count - 12} more (" in lacks
    assert "the next raft run or raft resume uploads what is missing" in heard.notices[-1]
    monkeypatch.chdir(folder)
    before = artifacts(folder / "outputs" / "tiny")
    run(f"store.mirror={server.make('somewhere')}")  # the key may change, and nothing is made again
    assert artifacts(folder / "outputs" / "tiny") == before and "store" in MUTABLE_KEYS
    there = server.files("somewhere", "tiny/")
    assert {name.removesuffix(".stamp.json") for name in there if name.endswith(".stamp.json")} == set(before)


@pytest.mark.nightly
def test_wherever_a_server_begins_to_fail_what_is_stamped_is_whole_and_only_what_is_missing_is_sent_later(
    finished, server, monkeypatch
):
    folder = finished[0] / "outputs" / "tiny"
    bucket = server.make("failing")
    upload(folder, f"{bucket}/all")
    needed = [key.removeprefix("/failing/all/tiny/") for key in server.puts() if "/all/" in key]
    assert len(needed) > 30 and len(set(needed)) == len(needed)
    for count in range(1, len(needed), len(needed) // 3):
        done: list[str] = []

        def refuses(method: str, key: str, count: int = count, done: list[str] = done) -> bool:
            done += [key] if method == "PUT" else []
            return method == "PUT" and len(done) > count

        server.refuses = refuses
        (said,) = [one for one in upload(folder, f"{bucket}/{count}") if "lacks" in one]
        assert "PermissionError" in said
        there = server.files("failing", f"{count}/tiny/")
        assert len(there) == count
        stamped = [name.removesuffix(".stamp.json") for name in there if name.endswith(".stamp.json")]
        server.refuses = lambda method, key: False
        server.requests.clear()
        upload(folder, f"{bucket}/{count}")
        sent = [key.removeprefix(f"/failing/{count}/tiny/") for key in server.puts()]
        assert [name for name in sent for one in stamped if name in (one, f"{one}.stamp.json")] == []
        assert [name for name in sent for one in stamped if name.startswith(f"{one}/")] == []
        complete, whole = (server.files("failing", f"{one}/tiny/") for one in (count, "all"))
        assert complete.keys() == whole.keys()
        assert [name for name in whole if whole[name] != complete[name] and not name.startswith("logs/")] == []


def test_an_artifact_that_was_made_again_replaces_that_in_the_mirror_and_is_never_half_of_both(
    finished, server, tmp_path
):
    url = server.make("again")
    folder = shutil.copytree(finished[0] / "outputs" / "tiny", tmp_path / "tiny", symlinks=True)
    upload(folder, url)
    policy = folder / "iterations" / "002" / "policy"
    (policy / "config.json").write_text((policy / "config.json").read_text() + " ")
    stamp = stamps.read_stamp(policy)
    assert stamp is not None
    stamps.stamp_path(policy).write_text(json.dumps({**stamp, "content": stamps.content_of(policy)}))
    server.requests.clear()
    upload(folder, url)
    assert len(server.puts("policy.stamp.json")) == 1
    assert server.files("again")["tiny/iterations/002/policy/config.json"].endswith(b" ")


def test_a_policy_that_the_run_deletes_while_it_is_uploaded_is_deleted_in_the_mirror_too(finished, server, tmp_path):
    url = server.make("meanwhile")
    folder = shutil.copytree(finished[0] / "outputs" / "tiny", tmp_path / "tiny", symlinks=True)
    policy = folder / "iterations" / "002" / "policy"

    def deletes(method: str, key: str) -> bool:
        if method == "PUT" and "002/policy/" in key and policy.exists():
            stamp = stamps.read_stamp(policy)
            stamps.stamp_path(policy).write_text(json.dumps({**(stamp or {}), "pruned": True}))
            shutil.rmtree(policy)
        return False

    server.refuses = deletes
    assert upload(folder, url) == [f"all of it is in {url}/tiny; elsewhere, raft pull {url}/tiny brings it back"]
    upload(folder, url)  # the next process
    there = server.files("meanwhile", "tiny/iterations/002/")
    assert json.loads(there["policy.stamp.json"])["pruned"]
    assert not [name for name in there if name.startswith("policy/")]


def test_a_mirror_in_the_place_of_its_run_is_refused(finished, tmp_path):
    folder = shutil.copytree(finished[0] / "outputs" / "tiny", tmp_path / "tiny", symlinks=True)
    before = sorted(folder.rglob("*"))
    (tmp_path / "link").symlink_to(tmp_path)
    for place in (tmp_path, folder, folder / "logs", tmp_path / "link"):
        with pytest.raises(UserError, match=r"store\.mirror: .* in its own place"):
            upload(folder, f"file://{place}")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.nightly
def test_a_branch_is_pulled_as_a_run_that_stands_alone(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "one", symlinks=True)
    url = f"file://{tmp_path}/there"
    off = ["resume", "outputs/tiny", "--from-iteration", "2", "name=branch", f"store.mirror={url}"]
    done = worlds.raft(folder, *off, "iterations=2")
    assert done.returncode != 0 and "deleted to save room" in done.stderr  # keep_policies: last
    done = worlds.raft(folder, *off[:3], "1", *off[4:], "iterations=1")
    assert done.returncode == 0 and f"all of it is in {url}/branch" in done.stdout, done.stdout + done.stderr
    shutil.rmtree(folder / "outputs")
    for command in (["pull", f"{url}/branch"], ["resume", "outputs/branch", "iterations=2"]):
        done = worlds.raft(folder, *command)
        assert done.returncode == 0, done.stderr
    whole, made = (worlds.fingerprint(one) for one in (finished[0] / "outputs" / "tiny", folder / "outputs" / "branch"))
    assert {name: made.get(name) for name in whole if name != "dropped.jsonl"} == {  # what a branch has no own of
        name: content for name, content in whole.items() if name != "dropped.jsonl"
    }


@pytest.mark.nightly
def test_a_run_that_is_killed_leaves_a_mirror_that_another_machine_goes_on_from(world, finished, tmp_path, monkeypatch):
    folder = placed(world, tmp_path / "one", monkeypatch)
    url = f"file://{tmp_path}/there"
    command = worlds.Command(folder, "run", "recipe.yaml", f"store.mirror={url}")
    copied = tmp_path / "there" / "tiny" / "iterations" / "001" / "scores.jsonl.stamp.json"
    while not copied.exists() and command.poll() is None:
        time.sleep(0.005)
    command.kill()
    command.wait()
    for path, stamp in stamps.stamped(tmp_path / "there" / "tiny"):
        assert stamps.damage(path, stamp) is None
    placed(world, tmp_path / "two", monkeypatch)
    done = worlds.raft(tmp_path / "two", "pull", f"{url}/tiny")
    assert done.returncode == 0 and "next: raft resume outputs/tiny" in done.stdout, done.stderr
    assert (tmp_path / "two" / "outputs" / "tiny" / "best").is_symlink()
    done = worlds.raft(tmp_path / "two", "resume", "outputs/tiny")
    assert done.returncode == 0, done.stderr
    whole = worlds.fingerprint(finished[0] / "outputs" / "tiny")
    made = worlds.fingerprint(tmp_path / "two" / "outputs" / "tiny")
    assert {name: made[name] for name in whole} == whole


def test_a_run_that_is_alone_on_a_machine_says_all_that_it_lacks_and_goes_on_with_what_it_holds(
    world, finished, tmp_path, monkeypatch
):
    whole = shutil.copytree(finished[0], tmp_path / "whole", symlinks=True)
    monkeypatch.chdir(whole)
    more = ["store.mirror=null", "iterations=3"]
    run(*more)
    alone = tmp_path / "alone"
    folder = Path("outputs/tiny")
    shutil.copytree(finished[0] / folder, alone / folder)  # links to policy 0 become files, as `raft pull` makes them
    about = alone / folder / "run.json"
    elsewhere = {"recipe": "/elsewhere/recipe.yaml", "folder": "/elsewhere"}
    about.write_text(json.dumps({**json.loads(about.read_text()), **elsewhere}))
    monkeypatch.chdir(alone)

    def refused(*overrides: str) -> list[str]:
        """The keys that are said to be at fault, and the last line."""
        with pytest.raises(UserError) as fault, preflight.all_faults():
            preflight.check(recipe.load_run(folder, [*more, *overrides]))
        first, *rows, last = str(fault.value).splitlines()
        assert "resolved.yaml" not in str(fault.value) and first.startswith(f"{folder}: {len(rows)} fault")
        assert last.startswith("repeat the command with KEY=VALUE")
        return [row.split(": ")[1] for row in rows]

    assert refused() == ["reward.function"]  # policy 0 and the pool stand for the model and the prompts
    assert refused("policy.model=bass", "evaluation.gold={kind: model, model: none}") == [
        "reward.function", "policy.model", "evaluation.gold.model",
    ]  # fmt: skip
    shutil.copy(world / "letters.py", folder)  # beside recipe.yaml
    assert refused("prompts.path=other.jsonl") == ["prompts.path"]
    loop.run(recipe.load_run(folder, more), Heard())
    made, wanted = worlds.fingerprint(folder), worlds.fingerprint(whole / folder)
    assert {name: made[name] for name in wanted} == wanted
    shutil.rmtree(folder / "iterations" / "000" / "policy")
    assert refused() == ["policy.model"]


@pytest.mark.parametrize(
    "url",
    ["s3://AKIA:hush/y+z@bucket/runs", "s3://hush@bucket", "gs://bucket/x?token=hush", "sftp://me:hush@host/x",
     "abfs://c@host/x#hush", "memory://hush:@x"],
)  # fmt: skip
def test_a_url_with_a_secret_is_refused_and_not_repeated(world, url, monkeypatch):
    monkeypatch.chdir(world)
    with pytest.raises(UserError, match=r"store\.mirror: holds a name, a key or a query") as refused:
        recipe.load(Path("recipe.yaml"), [f"store.mirror='{url}'"])
    with pytest.raises(UserError, match="holds a name, a key or a query") as pulled:
        pull(url)
    assert "hush" not in str(refused.value) + str(pulled.value)


@pytest.mark.parametrize("url", ["memory://runs", "file://{}/a b/[1]"])
def test_any_place_that_fsspec_can_write_is_a_mirror(finished, url, tmp_path):
    folder, place = finished[0] / "outputs" / "tiny", url.format(tmp_path)
    assert len(upload(folder, place)) == len(upload(folder, f"{place}/other")) == 1
    pulled, fetched, _ = pull(f"{place}/tiny", tmp_path / "pulled")
    assert artifacts(pulled) == artifacts(folder) and fetched == len(artifacts(folder))
    assert upload(folder, place) == []


def test_a_url_names_a_place_of_a_protocol_whose_package_is_here():
    for fine in ("s3://bucket", "s3://bucket/a b", "file:///tmp/x", "memory://x", "sftp://me@host/x"):
        assert fault_of_url(fine) is None
    for bad in ("bucket", "/tmp/x", "s3://", "simplecache::s3://bucket", "file:///"):
        assert "must be like s3://bucket/prefix" in str(fault_of_url(bad))
    assert "did you mean s3?" in str(fault_of_url("s4://bucket"))
    if find_spec("gcsfs") is None:
        assert "gs:// needs gcsfs, which is not installed here: pip install gcsfs" in str(fault_of_url("gs://bucket"))


def test_check_tries_that_the_mirror_can_be_written_and_leaves_nothing_there(world, server, monkeypatch):
    monkeypatch.chdir(world)
    url = server.make("tried")
    preflight.try_mirror(recipe.load(Path("recipe.yaml"), [f"store.mirror={url}/x"]))
    assert [key.split("/.raft-")[0] for key in server.puts()][-1] == "/tried/x" and server.files("tried") == {}
    with pytest.raises(UserError, match=r"store\.mirror: s3://absent cannot be written.*bucket does not exist"):
        preflight.try_mirror(recipe.load(Path("recipe.yaml"), ["store.mirror=s3://absent"]))
    server.refuses = lambda method, key: method == "GET"
    assert "PermissionError" in str(fault_of_trial(url))
    assert fault_of_trial("memory://tried/x") is None


def test_a_server_that_does_not_answer_is_not_waited_for(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        s3fs.S3FileSystem.clear_instance_cache()
        began = time.monotonic()
        assert "did not answer within 0.3 s" in str(fault_of_trial("s3://bucket", 0.3))
        assert time.monotonic() - began < 5
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_pull_that_is_ended_goes_on_and_fetches_nothing_twice(finished, server, tmp_path, monkeypatch):
    url = server.make("pulled")
    upload(finished[0] / "outputs" / "tiny", url)
    monkeypatch.chdir(tmp_path)
    left_out = (".stamp.json", ".md", "dropped.jsonl")  # which are fetched each time, if at all
    wanted = {key for key in server.puts() if "/iterations/" in key and not key.endswith(left_out)}
    fetched: list[str] = []

    def refuses_after(most: int) -> Callable[[str, str], bool]:
        def refuses(method: str, key: str) -> bool:
            if method == "GET" and len(fetched) < most:
                fetched.extend([key] if key in wanted else [])
                return False
            return method == "GET" and (key in wanted or key.endswith("run.json"))

        return refuses

    for most in (1, 7, len(wanted) - 1):
        server.refuses = refuses_after(most)
        with pytest.raises(UserError, match=r"cannot be read \(PermissionError.*the same command goes on"):
            pull(f"{url}/tiny")
    server.refuses = refuses_after(1000)
    folder, _, there = pull(f"{url}/tiny")
    assert there > 5 and artifacts(folder) == artifacts(finished[0] / "outputs" / "tiny")
    assert sorted(fetched) == sorted(wanted)
    assert not list(folder.rglob(".*.tmp"))
    assert pull(f"{url}/tiny", folder)[1] == 0


def test_a_pull_overwrites_nothing_that_the_mirror_does_not_have(finished, tmp_path, monkeypatch):
    url = "memory://refused"
    upload(finished[0] / "outputs" / "tiny", url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=f"mine exists and is not a run; name another: raft pull {url}/tiny --to"):
        pull(f"{url}/tiny", Path("mine"))
    folder, _, _ = pull(f"{url}/tiny")
    prompts = folder / "pool.jsonl"
    stamp = stamps.read_stamp(prompts)
    assert stamp is not None
    for changed, said in (
        ({"hash": "0" * 64}, "pool.jsonl is another one than that in"),
        ({"content": {"": [1, "0" * 64]}}, "pool.jsonl is another one than that in"),
    ):
        stamps.stamp_path(prompts).write_text(json.dumps({**stamp, **changed}))
        with pytest.raises(UserError, match=said):
            pull(f"{url}/tiny")
    stamps.stamp_path(prompts).write_text(json.dumps(stamp))
    own = folder / "iterations" / "003" / "prompts.jsonl"
    own.parent.mkdir()
    shutil.copy(prompts, own)
    stamps.stamp_path(own).write_text(json.dumps(stamp))
    with pytest.raises(UserError, match=r"003/prompts.jsonl is not in .*raft resume outputs/tiny"):
        pull(f"{url}/tiny")
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**about, "id": "another"}))
    with pytest.raises(UserError, match="outputs/tiny holds another run than"):
        pull(f"{url}/tiny")
    with pytest.raises(UserError, match=rf"is not the mirror of a run .*runs in it: {url}/tiny"):
        pull(url)
    with pytest.raises(UserError, match=r"s3://absent/tiny is not the mirror of a run|cannot be read"):
        pull("s3://absent/tiny")


def test_what_is_damaged_in_the_mirror_is_left_out_and_named(finished, server, tmp_path, monkeypatch):
    url = server.make("damaged")
    folder = finished[0] / "outputs" / "tiny"
    upload(folder, url)
    weights, scores = "iterations/002/policy/model.safetensors", "iterations/001/scores.jsonl"
    (content := bytearray((folder / weights).read_bytes()))[-1] ^= 1
    server.put("damaged", f"tiny/{weights}", bytes(content))
    server.buckets()["damaged"].keys[f"tiny/{scores}"].value = b"?"  # other bytes than the server's own checksum
    server.broken.clear()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^2 artifacts of .* are not what their stamps say") as refused:
        pull(f"{url}/tiny")
    assert "  iterations/002/policy: model.safetensors has as many bytes as when" in str(refused.value)
    assert "  iterations/001/scores.jsonl: " in str(refused.value)
    here = artifacts(Path("outputs/tiny"))
    assert artifacts(folder).keys() - here.keys() == {"iterations/002/policy", scores}
    del server.buckets()["damaged"]


def test_nothing_of_a_mirror_is_written_outside_the_folder(finished, server, tmp_path, monkeypatch):
    url = server.make("hostile")
    upload(finished[0] / "outputs" / "tiny", url)
    monkeypatch.chdir(tmp_path)
    stamp = json.loads(server.files("hostile")["tiny/pool.jsonl.stamp.json"])
    digest = hashlib.sha256(b"evil").hexdigest()
    remote = RemoteFolder(f"{url}/tiny")
    for name in ("../../../evil", "/evil", "a/../../evil"):
        remote.write(f"x/{name}", b"evil") if not name.startswith("/") else None
        hostile = {**stamp, "content": {name: [4, digest]}}
        remote.write("iterations/009.stamp.json", json.dumps(hostile).encode())
        server.broken.clear()
        try:
            pull(f"{url}/tiny", tmp_path / "deep" / "er" / "run")
        except UserError as fault:
            assert "which raft did not write" in str(fault)
        assert not list(tmp_path.rglob("*evil*"))
    del server.buckets()["hostile"]


def test_a_mirror_of_another_run_of_the_same_name_is_left_alone(finished, tmp_path):
    url = f"file://{tmp_path}/taken"
    folder = finished[0] / "outputs" / "tiny"
    upload(folder, url)
    before = {file: file.read_bytes() for file in (tmp_path / "taken").rglob("*") if file.is_file()}
    shutil.copytree(folder, tmp_path / "tiny", symlinks=True)
    about = json.loads((tmp_path / "tiny" / "run.json").read_text())
    (tmp_path / "tiny" / "run.json").write_text(json.dumps({name: about[name] for name in about if name != "id"}))
    (said,) = upload(tmp_path / "tiny", url)
    assert "has got nothing from this process" in said
    assert f"{url}/tiny holds another run, so nothing is uploaded" in said
    assert {file: file.read_bytes() for file in (tmp_path / "taken").rglob("*") if file.is_file()} == before
