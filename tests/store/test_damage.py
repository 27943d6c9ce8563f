"""Whatever was done to the files of a finished run, each command says it in one sentence, and uses none of it."""

import contextlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import worlds

from raft.cli import main as cli
from raft.core import atomic
from raft.core.errors import UserError
from raft.core.run_paths import RunPaths
from raft.store import stamps
from raft.store.keys import Artifact

READING = (("status",), ("report",), ("plot",), ("show",), ("resume",))


def flip(file: Path) -> None:
    """Turns one bit in the middle, and leaves size and time as they were."""
    content, times = bytearray(file.read_bytes()), file.stat().st_mtime_ns
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times, times))


def without_last(file: Path) -> None:
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))


def swapped(file: Path) -> None:
    first, second, *rest = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([second, first, *rest]))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: os.truncate(file, file.stat().st_size * 2 // 3),
    "emptied": lambda file: os.truncate(file, 0),
    "one bit": flip,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "last line gone": without_last,
    "lines swapped": swapped,
}
ROWS = (
    "pool.jsonl", "evaluation.jsonl", "references.jsonl", "iterations/001/prompts.jsonl",
    "iterations/001/responses.jsonl", "iterations/001/scores.jsonl", "iterations/001/reference.jsonl",
    "iterations/002/selected.jsonl",
    "iterations/002/responses.jsonl", "iterations/000/evaluation/responses.jsonl",
    "iterations/001/evaluation/scores.jsonl", "iterations/002/evaluation/gold.jsonl",
    "iterations/002/evaluation/likelihoods.jsonl", "iterations/001/evaluation/references.jsonl",
)  # fmt: skip
WHOLE = (
    "iterations/001/metrics.json", "iterations/002/policy/model.safetensors", "iterations/001/policy/probe.json",
    "iterations/002/policy/config.json", "iterations/002/policy/tokenizer.json", "iterations/000/policy/probe.json",
)  # fmt: skip
HURT = [(name, how) for name in ROWS for how in DAMAGES]
HURT += [(name, how) for name in WHOLE for how in ("cut", "emptied", "one bit", "zeros")]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[Path]:
    """A finished run of two iterations with every kind of artifact, in the current folder."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "references.jsonl").write_text(
        '{"id": "a", "prompt": "the red fox ", "response": "runs"}\n'
        '{"id": "b", "prompt": "the hen ", "response": "sits"}\n'
    )
    evaluation = {"count": 4, "k": 2, "references": {"kind": "file", "path": "references.jsonl"}}
    worlds.make_recipe(
        folder, keep_policies="all", evaluation=evaluation, prompts={"per_iteration": 4}, selection={"kl_coef": 0.01},
        generator={"k": 2, "max_tokens": 6},
    )  # fmt: skip
    before = Path.cwd()
    os.chdir(folder)
    assert told("run", "recipe.yaml") == (0, ""), told("run", "recipe.yaml")
    yield folder
    os.chdir(before)


@pytest.fixture
def run(world: Path) -> Path:
    return Path("outputs/tiny")


def told(*arguments: str) -> tuple[int, str]:
    """The exit status of a command in this process, which forgets what it has read, and what it complained of."""
    atomic._digests.clear()
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        status = cli.execute(cli.parse(list(arguments)))
    return status, "" if status == 0 else said.getvalue()


def artifact_of(file: Path) -> Path:
    """What a file belongs to: a policy, or itself."""
    return file.parent if file.parent.name == "policy" else file


def everything(run: Path) -> dict[str, bytes]:
    """What the artifacts and stamps of a run hold."""
    files = (file for file in run.rglob("*") if file.is_file() and "logs" not in file.parts)
    kept = {str(file.relative_to(run)): file.read_bytes() for file in files}
    return {name: content for name, content in kept.items() if name not in ("run.json", "progress.json", "report.html")}


@contextlib.contextmanager
def hurt(file: Path, how: Callable[[Path], object]) -> Iterator[None]:
    content = file.read_bytes()
    how(file)
    try:
        yield
    finally:
        shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
        file.write_bytes(content)


@pytest.mark.parametrize(("name", "how"), HURT)
def test_every_damage_is_found(run, name, how):
    with hurt(run / name, DAMAGES[how]):
        atomic._digests.clear()
        with pytest.raises(UserError, match=rf"{artifact_of(run / name)} is damaged: .*raft resume outputs/tiny"):
            stamps.require_all(run)
        stamp = stamps.read_stamp(artifact_of(run / name))
        with pytest.raises(UserError, match=f"{artifact_of(run / name)} is damaged"):
            _ = Artifact(artifact_of(run / name), stamp).path
    stamps.require_all(run)


@pytest.mark.faults
@pytest.mark.parametrize(("name", "how"), HURT)
def test_no_command_uses_a_damaged_artifact(run, name, how):
    with hurt(run / name, DAMAGES[how]):
        before = everything(run)
        for command in (*READING, ("resume", "iterations=3")):
            status, said = told(command[0], str(run), *command[1:])
            assert status == 2 and f"{artifact_of(run / name)} is damaged" in said, (command, said)
            assert re.search("elete .*raft resume outputs/tiny", said)
        assert everything(run) == before


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("iterations/001/scores.jsonl", "lines swapped"), ("iterations/002/policy/model.safetensors", "one bit"),
        pytest.param("iterations/001/responses.jsonl", "one bit", marks=pytest.mark.nightly),
        pytest.param("pool.jsonl", "last line gone", marks=pytest.mark.nightly),
    ],
)  # fmt: skip
def test_every_command_names_a_damaged_artifact_and_deleting_it_is_enough(run, name, how):
    artifact = artifact_of(run / name)
    whole = worlds.fingerprint(run)
    DAMAGES[how](run / name)
    for command in (*READING, ("resume", "iterations=3"), ("resume", "--from-iteration", "2")):
        status, said = told(command[0], str(run), *command[1:])
        assert status == 2 and f"{artifact} is damaged" in said, (command, said)
    shutil.rmtree(artifact) if artifact.is_dir() else artifact.unlink()
    assert told("resume", str(run)) == (0, "")
    assert worlds.fingerprint(run) == whole


def test_the_weights_of_one_policy_in_the_place_of_another_are_seen(run):
    other = (run / "iterations/001/policy/model.safetensors").read_bytes()
    with hurt(run / "iterations/002/policy/model.safetensors", lambda file: file.write_bytes(other)):
        for command in READING:
            status, said = told(*command, str(run))
            assert status == 2 and "iterations/002/policy is damaged: model.safetensors has as many bytes" in said


@pytest.mark.parametrize(
    "name",
    [
        "iterations/001/scores.jsonl", "iterations/001/policy",
        *(pytest.param(name, marks=pytest.mark.faults) for name in (
            "evaluation.jsonl", "iterations/001/evaluation/gold.jsonl", "iterations/002/metrics.json",
            "pool.jsonl", "iterations/001/prompts.jsonl", "iterations/002/responses.jsonl",
            "iterations/002/scores.jsonl", "iterations/001/selected.jsonl", "iterations/000/policy",
        )),
    ],
)  # fmt: skip
def test_what_was_deleted_is_made_again_and_equal(run, name):
    whole = worlds.fingerprint(run)
    shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    status, said = told("show", str(run))
    if not name.endswith("policy"):  # what is shown is not in a model
        assert status == 2 and f"{run / name} is gone" in said and "raft resume outputs/tiny" in said
    assert told("resume", str(run)) == (0, "")
    assert worlds.fingerprint(run) == whole


BROKEN = {"cut": lambda old: old[: len(old) // 2], "empty": lambda old: b"", "zeros": lambda old: bytes(len(old))}
BROKEN |= {"a list": lambda old: b"[1, 2]", "a text": lambda old: b'"x"', "not UTF-8": lambda old: b"\xff\xfe" + old}
BOOKS = (
    "iterations/001/scores.jsonl.stamp.json", "pool.jsonl.stamp.json", "iterations/002/policy.stamp.json", "run.json",
    "resolved.yaml", "iterations/001/metrics.json",
)  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("name", BOOKS)
def test_damaged_bookkeeping_is_named_and_never_a_traceback(run, name, how):
    with hurt(run / name, lambda file: file.write_bytes(BROKEN[how](file.read_bytes()))):
        for command in READING:
            status, said = told(*command, str(run))
            unread = name == "resolved.yaml" and command[0] in ("status", "plot", "show")
            assert status == 0 if unread else status == 2 and Path(name).name in said, (command, said)


@pytest.mark.parametrize("how", ["cut", pytest.param("zeros", marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl",
        *(
            pytest.param(name, marks=pytest.mark.nightly)
            for name in ("progress.json", "reward_curve.csv", "forecast.json")
        ),
    ],
)
def test_what_is_made_again_anyway_stands_in_nobodys_way(run, name, how):
    there = (run / name).exists()
    if not there:
        (run / name).write_text("{}")
    with hurt(run / name, lambda file: file.write_bytes(BROKEN[how](file.read_bytes()))):
        for command in READING:
            status, said = told(*command, str(run))
            assert status == 0 or (status == 2 and name in said), (command, said)
    if not there:
        (run / name).unlink()


def test_the_reasons_of_what_was_dropped_are_compared_too(run):
    listed = next(file for file in (run / "dropped.jsonl", *run.glob("iterations/*/dropped.jsonl")) if file.exists())
    with hurt(listed, lambda file: file.write_bytes(file.read_bytes().replace(b"held out", b"bent"))):
        status, said = told("report", str(run))
        assert status == 2 and "dropped.jsonl is damaged: its rows of collect" in said


def test_a_folder_of_another_name_is_no_iteration(run):
    (run / "iterations" / "0zz").mkdir()
    try:
        assert [told(*command, str(run)) for command in READING] == [(0, "")] * len(READING)
        assert [one.folder.name for one in RunPaths(run).iterations()] == ["000", "001", "002"]
    finally:
        (run / "iterations" / "0zz").rmdir()
