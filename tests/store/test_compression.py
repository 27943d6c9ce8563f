"""store.compress: the responses of finished iterations in a third of the room, and every bit of them still there."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import worlds

import raft
from raft.config.jobs import Store
from raft.core import compressed, records
from raft.core.errors import UserError
from raft.core.run_paths import RunPaths
from raft.store import compression, mirror, stamps
from raft.store.runs import Run

SMALL: dict[str, Any] = {
    "prompts": {"per_iteration": 8},
    "generator": {"k": 4, "max_tokens": 8},
    "evaluation": {"count": 4, "k": 2},
}
NAME = "responses.jsonl"
ON = "store.compress=true"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same run twice: `plain`, and `packed` with compression."""
    folder = tmp_path_factory.mktemp("compression")
    worlds.make_recipe(folder, keep_policies="all", **SMALL)
    for words in (["name=plain"], ["name=packed", ON]):
        done = worlds.raft(folder, "run", "recipe.yaml", *words)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copy(world: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    shutil.copytree(world, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def unpacked(run: Path) -> dict[str, bytes]:
    """The exact content of a run's artifacts by name, of what is compressed that which is inside."""
    found = worlds.fingerprint(run)
    for file in (one for one in run.rglob("*.zst") if not one.is_symlink()):
        with pyarrow.input_stream(str(file), compression="zstd") as stream:
            found[str(file.relative_to(run)).removesuffix(".zst")] = stream.read()
    return found


def compressed_names(run: Path) -> set[str]:
    return {str(file.relative_to(run)) for file in run.rglob("*.zst")}


def size(run: Path) -> int:
    return sum(file.stat().st_size for file in run.rglob(f"{NAME}*") if "stamp" not in file.name)


def test_every_artifact_is_that_of_a_run_without_and_only_responses_are_kept_in_less_room(world):
    plain, packed = (world / "outputs" / name for name in ("plain", "packed"))
    assert unpacked(packed) == worlds.fingerprint(plain)
    assert compressed_names(packed) == {f"{name}.zst" for name in worlds.fingerprint(plain) if name.endswith(NAME)}
    assert list(packed.rglob(NAME)) == [] and list(plain.rglob("*.zst")) == []
    for it, other in zip(RunPaths(packed).iterations(), RunPaths(plain).iterations(), strict=True):
        for one, same in ((it, other), (it.evaluation, other.evaluation)):
            if same.responses.exists():
                rows, wanted = list(records.read(one.responses)), list(records.read(same.responses))
                assert rows == wanted and json.dumps(rows) == json.dumps(wanted)  # -0.0 is 0.0, but not as text
    assert size(packed) < 0.5 * size(plain)


@pytest.mark.nightly
def test_whatever_is_said_of_a_run_does_not_depend_on_it(world):
    some = next(records.read(RunPaths(world / "outputs" / "plain").evaluation))["id"]
    for command, *more in (["show", "--list"], ["show", some]):
        plain, packed = (worlds.raft(world, command, f"outputs/{name}", *more) for name in ("plain", "packed"))
        assert packed.returncode == 0 and packed.stdout == plain.stdout != "", packed.stderr
    assert "gone" not in worlds.raft(world, "status", "outputs/packed", "--files").stdout
    pages: list[Any] = []
    for name in ("plain", "packed"):
        assert worlds.raft(world, "report", f"outputs/{name}").returncode == 0
        pages.append((world / "outputs" / name / "report.html").stat().st_size)
        run = raft.open_run(world / "outputs" / name)
        pages.append([group.responses for held_out in (False, True) for group in run.groups(held_out=held_out)])
    assert pages[1] == pages[3] and pages[0] == pytest.approx(pages[2], rel=0.01)
    done = worlds.raft(world, "compare", "outputs/plain", "outputs/packed")
    assert "every artifact that both have is the same" in done.stdout


class Killed(BaseException):
    """Ends the compression at a point, as a kill does: nothing that stands behind it happens."""


def killed_at(turn: int, patch: pytest.MonkeyPatch) -> None:
    """Breaks the compression off before its step `turn`, and between the writing of a file and its name."""
    steps = iter(range(100))

    def step(function: Callable[..., Any]) -> Callable[..., Any]:
        def broken(*arguments: Any, **options: Any) -> Any:
            if next(steps) == turn:
                raise Killed
            return function(*arguments, **options)

        return broken

    patch.setattr(compressed, "packed", step(compressed.packed))
    patch.setattr("raft.core.atomic.fsync_tree", step(lambda path: None))
    patch.setattr("os.replace", step(__import__("os").replace))
    patch.setattr(compression, "file_digest", step(compression.file_digest))
    patch.setattr(Path, "unlink", step(Path.unlink))


def test_a_run_that_is_killed_at_any_point_of_it_goes_on_to_the_same_bytes(copy, monkeypatch):
    run = copy / "outputs" / "plain"
    wanted, it = worlds.fingerprint(run), RunPaths(run).iteration(1)
    for turn in range(100):
        with monkeypatch.context() as patch:
            killed_at(turn, patch)
            try:
                compression.compress(Run(run, 0), it.folder)
                break
            except Killed:
                pass
        stamps.require_all(run, rows=True)
        assert unpacked(run) == wanted
        assert len(list(records.read(it.responses))) == len(list(records.read(it.prompts)))
    assert turn == 7  # of six points for a file; then the first is done, and the second goes through
    (it.folder / f".{NAME}.zst.tmp").write_bytes(b"the rest of a kill")
    shutil.copyfile(compressed.beside(it.responses), RunPaths(run).iteration(2).folder / f"{NAME}.zst")  # of another
    done = worlds.raft(copy, "run", "recipe.yaml", "name=plain", ON)
    assert done.returncode == 0, done.stderr
    assert unpacked(run) == wanted and list(run.rglob(NAME)) == []
    assert compressed_names(run) == compressed_names(copy / "outputs" / "packed")


@pytest.mark.nightly
def test_a_branch_shares_what_is_compressed_and_compresses_only_its_own(copy):
    before = {file: file.read_bytes() for file in (copy / "outputs" / "packed").rglob("*") if file.is_file()}
    for name in ("plain", "packed"):
        done = worlds.raft(
            copy, "resume", f"outputs/{name}", "--from-iteration", "2", f"name=of-{name}", "iterations=3"
        )
        assert done.returncode == 0, done.stderr
    assert unpacked(copy / "outputs/of-packed") == unpacked(copy / "outputs/of-plain")
    assert {name.split("/")[1] for name in compressed_names(copy / "outputs/of-packed")} == {"002", "003"}
    assert {file: file.read_bytes() for file in before} == before
    done = worlds.raft(copy, "resume", "outputs/of-plain", ON)  # what it shares with `plain` is not its own
    assert done.returncode == 0 and compressed_names(copy / "outputs/plain") == set(), done.stderr


@pytest.mark.nightly
def test_what_is_damaged_is_named_and_what_is_gone_is_made_again(copy):
    run = copy / "outputs" / "packed"
    file = compressed.beside(RunPaths(run).iteration(2).responses)
    whole = file.read_bytes()
    other = compressed.beside(RunPaths(run).iteration(1).responses).read_bytes()
    flipped = bytes([*whole[:-20], whole[-20] ^ 8, *whole[-19:]])
    for content in (whole[: len(whole) // 2], flipped, other, b"", b"nothing"):
        file.write_bytes(content)
        for command in (["show", "outputs/packed"], ["run", "recipe.yaml", "name=packed", ON]):
            done = worlds.raft(copy, *command)
            assert done.returncode == 2 and f"{NAME}.zst is damaged" in done.stderr and "Traceback" not in done.stderr
        with pytest.raises(UserError):
            stamps.require_all(run, rows=True)
    file.unlink()
    assert "gone" in worlds.raft(copy, "status", "outputs/packed").stdout
    assert worlds.raft(copy, "run", "recipe.yaml", "name=packed", ON).returncode == 0
    assert (
        hashlib.sha256(unpacked(run)[str(file.relative_to(run)).removesuffix(".zst")]).hexdigest()
        == (stamps.read_stamp(RunPaths(run).iteration(2).responses) or {})["content"][""][1]
    )
    assert unpacked(run) == unpacked(copy / "outputs" / "plain")


@pytest.mark.nightly
def test_a_mirror_holds_either_form_and_gives_the_same_bytes_back(copy, monkeypatch):
    monkeypatch.chdir(copy)
    run, url = copy / "outputs" / "packed", f"file://{copy}/mirror"
    wanted = unpacked(run)
    done = worlds.raft(copy, "run", "recipe.yaml", "name=packed", ON, f"store.mirror={url}")
    assert done.returncode == 0 and "all of it is in" in done.stderr + done.stdout, done.stderr
    assert compressed_names(copy / "mirror" / "packed") == compressed_names(run)
    mirror.pull(f"{url}/packed", copy / "outputs" / "back")
    assert unpacked(copy / "outputs" / "back").items() >= wanted.items()  # and the weights that policy 0 links to
    assert compressed_names(copy / "outputs" / "back") == compressed_names(run)
    done = worlds.raft(copy, "run", "recipe.yaml", "name=plain", f"store.mirror={url}")
    done = worlds.raft(copy, "run", "recipe.yaml", "name=plain", f"store.mirror={url}", ON)
    assert done.returncode == 0 and compressed_names(copy / "outputs" / "plain") == compressed_names(run)
    assert compressed_names(copy / "mirror" / "plain") == set()  # what is there already is not sent again
    mirror.pull(f"{url}/plain", copy / "outputs" / "again")
    assert unpacked(copy / "outputs" / "again").items() >= wanted.items()
    done = worlds.raft(copy, "resume", "outputs/again", "name=again")
    assert "nothing to do" in done.stdout + done.stderr, done.stderr


def test_responses_that_are_compressed_while_they_are_uploaded_are_uploaded_compressed(copy, monkeypatch):
    run, said = Run(copy / "outputs" / "plain", 0), list[str]()
    looked = stamps.damage

    def interfered(path: Path, *more: Any) -> str | None:
        found = looked(path, *more)
        with monkeypatch.context() as patch:
            patch.setattr(stamps, "damage", looked)
            compression.compress(run, path.parent if path.name == NAME else path)
        return found

    monkeypatch.setattr(stamps, "damage", interfered)
    monkeypatch.setattr(mirror, "PAUSES", ())
    with mirror.mirrored(run, Store(mirror=f"file://{copy}/mirror"), said.append):
        pass
    assert len(said) == 1 and said[0].startswith("all of it is in "), said
    assert compressed_names(copy / "mirror" / "plain") == compressed_names(copy / "outputs" / "packed")


def test_other_jobs_and_commands_read_and_write_compressed_responses(copy):
    (copy / "label.yaml").write_text(
        "name: label\njob: label\nstore: {compress: true}\nresponses:\n"
        f"  {{path: outputs/packed/iterations/001/{NAME}.zst, prompts: outputs/packed/iterations/001/prompts.jsonl}}\n"
        "reward: {kind: rule, function: length}\n"
    )
    done = worlds.raft(copy, "run", "label.yaml")
    assert done.returncode == 0, done.stderr
    assert compressed_names(copy / "outputs" / "label") == {f"{NAME}.zst"}
    arguments = [
        f"outputs/packed/iterations/001/{NAME}.zst",
        "s.jsonl",
        "--prompts",
        "outputs/packed/iterations/001/prompts.jsonl",
    ]
    done = worlds.raft(copy, "score", "recipe.yaml", *arguments)
    assert done.returncode == 0, done.stderr
    rows = list(records.read(RunPaths(copy / "outputs" / "plain").iteration(1).scores))
    assert [row["scores"] for row in records.read(copy / "s.jsonl")] == [row["scores"] for row in rows]
