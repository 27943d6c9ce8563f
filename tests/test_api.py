"""raft from Python: the same artifacts as the command line, and a process that is left as it was."""

import asyncio
import gc
import importlib
import json
import linecache
import logging
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import worlds
import yaml

import raft
from raft.api import _Objects
from raft.config import recipe
from raft.core import given
from raft.core.resume_command import to_resume

pytestmark = pytest.mark.usefixtures("one_thread")

SHARE = "def share(prompt, response):\n    return response.count(prompt.meta['letter']) / max(1, len(response))\n"
ROWS = [{"prompt": f"the red fox {n} ", "letter": "r"} for n in range(32)]
SMALL = {"iterations": 1, "prompts": {"per_iteration": 8}, "evaluation": {"count": 4}}
STRINGS = ["iterations=1", "prompts.per_iteration=8", "evaluation.count=4"]


def cell(text: str, name: str = "share") -> Callable[..., Any]:
    """A function that a cell of a notebook defines: its source is known, and it stands in no module."""
    cell.count = getattr(cell, "count", 0) + 1  # type: ignore[attr-defined]
    file = f"<cell {cell.count}>"  # type: ignore[attr-defined]
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, file, "exec"), names)
    return names[name]


def content(text: str, name: str = "share") -> str:
    """What a key holds of a function of a notebook."""
    functions: given.Functions = {}
    assert given.refer(cell(text, name), functions) == f"<python>:{name}"
    return functions[name][1]


@pytest.fixture
def world(tmp_path, monkeypatch) -> Path:
    """A folder with a recipe, which is the current one."""
    monkeypatch.chdir(tmp_path)
    worlds.make_recipe(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a run that the command line has made."""
    folder = tmp_path_factory.mktemp("finished")
    worlds.make_recipe(folder)
    done = worlds.raft(folder, "run", "recipe.yaml", *STRINGS)
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / "tiny"


def keys(run: Path) -> dict[str, str]:
    return {str(one.relative_to(run)): json.loads(one.read_text())["hash"] for one in run.rglob("*.stamp.json")}


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(raft.UserError) as caught:
        call()
    return str(caught.value)


def test_a_function_that_raises_on_every_prompt_is_a_fault_before_anything_is_generated(world):
    calls: list[str] = []

    def broken(prompt, response):
        calls.append(response)
        return len(respons)  # noqa: F821

    def of_some(prompt, response):
        return 1 / len(response)  # an empty response has no reward

    for start in (raft.check, raft.run):
        said = refusal(lambda start=start: start("recipe.yaml", reward=raft.named(broken, "broken")))
        assert "reward.function: raises NameError: name 'respons' is not defined" in said
        assert "on each of the first 2 prompts, for every response that was tried" in said
    assert len(calls) == 2 * 2 * 4 and not Path("outputs").exists()
    assert raft.check("recipe.yaml", reward=of_some) == []


def test_a_run_has_the_keys_and_the_bytes_of_the_command_lines(world, finished, capfd):
    run = raft.run("recipe.yaml", quiet=True, **SMALL)
    assert capfd.readouterr() == ("", "")
    assert keys(run.folder) == keys(finished)
    assert worlds.fingerprint(run.folder) == worlds.fingerprint(finished)
    assert (run.folder / "resolved.yaml").read_bytes() == (finished / "resolved.yaml").read_bytes()
    content = yaml.safe_load((world / "recipe.yaml").read_text())
    again = raft.run(content, quiet=True, outputs="elsewhere", **SMALL)  # the same recipe, in no file
    assert again.folder == Path("elsewhere/tiny") and keys(again.folder) == keys(finished)
    assert yaml.safe_load((again.folder / "recipe.yaml").read_text()) == content


@pytest.mark.nightly
def test_a_function_of_a_module_is_the_one_that_a_recipe_names(world, finished, monkeypatch):
    monkeypatch.syspath_prepend(world)
    import letters

    run = raft.run("recipe.yaml", quiet=True, reward=letters.share, **SMALL)
    assert run.recipe["reward"] == {"kind": "rule", "function": "letters:share"} and keys(run.folder) == keys(finished)
    done = worlds.raft(world, "resume", "outputs/tiny", "iterations=2")
    assert done.returncode == 0 and run.iterations == 2, done.stderr
    (world / "letters.py").write_text("# another line\n" + (world / "letters.py").read_text())
    said = refusal(lambda: raft.run("recipe.yaml", reward=letters.share))
    assert "letters.py was changed since it was read (reload it, or start Python again)" in said
    importlib.reload(letters)
    said = refusal(lambda: raft.run("recipe.yaml", reward=letters.share, **{**SMALL, "iterations": 2}))
    assert "reward.function: the source of letters.py (letters:share) changed" in said
    del sys.modules["letters"]


VALUES: list[dict[str, Any]] = [
    {"iterations": 3},
    {"name": "1", "seed": 7},
    {"variables": {"a": "two\nlines \u2028 é 🦊 \x07 # no 'comment'", "b": "${name}", "c": [], "d": {}, "e": None}},
    {"trainer": {"learning_rate": 1e-6}, "generator": {"k": 2}},
    {"generator.k": 2, "evaluation": {"every": 2}},
    {"reward": {"args": {"words": ["a: b", "true", "~"]}}},
    {"variables": {"with a space": {"x": 1}}},
    {"keep_policies": "all", "evaluation": {"kl": False}},
    {"generator": {"kind": "transformers", "k": 2}, "evaluation": {"gold": {"kind": "rule", "function": "repetition"}}},
]


@pytest.mark.parametrize("overrides", VALUES)
def test_overrides_are_those_of_the_command_line(tmp_path, monkeypatch, overrides):
    """Merged by hand on the other side."""
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load(worlds.make_recipe(tmp_path).read_text())
    (tmp_path / "letters.py").write_text("def share(prompt, response, words=()):\n    return 0.0\n")

    def merged(below: Any, above: Any) -> Any:
        if not isinstance(below, dict) or not isinstance(above, dict):
            return above
        found = {} if "kind" in above else dict(below)
        for name, one in above.items():
            first, _, rest = name.partition(".")
            found[first] = merged(found.get(first), {rest: one} if rest else one)
        return found

    wanted = merged(content, overrides)
    if "variables" in wanted:
        wanted["variables"] = {name: "tiny" if one == "${name}" else one for name, one in wanted["variables"].items()}
    found = _Objects("given").load("recipe.yaml", overrides, Path("outputs")).config
    assert {name: found[name] for name in wanted} == wanted
    strings, _ = _Objects("given").overrides(overrides)
    assert found == recipe.load(Path("recipe.yaml"), strings).config


def test_a_run_goes_on_after_an_exception_in_a_callback(world, finished):
    class Breaks(raft.Callback):
        def on_checks(self, artifact: Any) -> None:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        raft.run("recipe.yaml", quiet=True, callbacks=[Breaks()], **SMALL)
    run = raft.open_run("outputs/tiny")
    assert run.iterations == 0 and not (run.folder / "iterations/001").exists()
    assert run.resume(quiet=True).iterations == 1
    assert worlds.fingerprint(run.folder) == worlds.fingerprint(finished)


def test_callbacks_define_what_they_want_and_are_told_in_their_order(world, finished):
    told = []

    class First(raft.Callback):
        def on_iteration_end(self, it: Any, findings: Any) -> None:
            told.append(("first", it.number))

    class Second(raft.Callback):
        def on_iteration_end(self, it: Any, findings: Any) -> None:
            told.append(("second", raft.open_run(it.run.folder).metrics[-1]["iteration"]))

        def on_run_end(self, run: Any, loaded: Any) -> None:
            told.append(("closed", run.folder))

    raft.run("recipe.yaml", quiet=True, callbacks=[First(), Second()], **SMALL)
    one = [("first", 0), ("second", 0), ("first", 1), ("second", 1)]
    assert told == [*one, ("closed", Path("outputs/tiny"))]


def test_ctrl_c_stops_the_run_in_order_and_a_second_one_at_once(world, finished):
    class Interrupted(raft.Callback):
        times = 1

        def on_iteration_end(self, it: Any, findings: Any) -> None:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
                signal.sigtimedwait([], 0.3)  # longer than signals that come together are one
            reached.append(it.number)

    reached: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="all finished work is saved, and the same call resumes"):
        raft.run("recipe.yaml", quiet=True, callbacks=[Interrupted()], **SMALL)
    assert reached == [0] and signal.getsignal(signal.SIGINT) is before
    at_once = Interrupted()
    at_once.times = 2
    with pytest.raises(KeyboardInterrupt):
        raft.run("recipe.yaml", quiet=True, callbacks=[at_once], **SMALL)
    assert reached == [0] and signal.getsignal(signal.SIGINT) is before
    run = raft.run("recipe.yaml", quiet=True, **SMALL)
    assert worlds.fingerprint(run.folder) == worlds.fingerprint(finished)


def test_a_function_of_a_notebook_is_known_by_its_source(world):
    run = raft.run("recipe.yaml", quiet=True, reward=cell(SHARE), **SMALL)
    assert run.recipe["reward"] == {"kind": "rule", "function": "<python>:share"}
    made = worlds.fingerprint(run.folder)
    run.resume(quiet=True, reward=cell("# a cell that was moved down\n\n" + SHARE), keep_policies="all")
    said = refusal(lambda: run.resume(quiet=True, reward=cell(SHARE.replace("max(1,", "max(2,"))))
    assert "was made from something else" in said and "reward.function: the source of share changed" in said
    assert worlds.fingerprint(run.folder) == made
    for call in ("raft.open_run('outputs/tiny').branch(1, ...)", "raft.run(..., name='tiny-2')"):
        assert f"  {call}\n" in said
    assert "  raft.run(..., restart=True)\n" in said
    for said in (refusal(lambda: run.resume(quiet=True)), worlds.raft(world, "resume", "outputs/tiny").stderr):
        assert "'share' was given as a Python object, so the run resumes only from Python" in said
        again = "raft.open_run('outputs/tiny').resume(reward=function)"
        assert said.rstrip().endswith(f"pass its objects again from Python, here or in a branch: {again}")
        assert "outputs/tiny: reward" in said and "resume(reward=function)" in said and "Traceback" not in said
    told = to_resume(run.folder, {"alerts.on_warning": "warn"})
    assert told == "raft.open_run('outputs/tiny').resume(reward=function, **{'alerts.on_warning': 'warn'})"
    told = to_resume(run.folder, {"selection": {"kind": "random"}}, branch=1)
    assert told == "raft.open_run('outputs/tiny').branch(1, reward=function, selection={'kind': 'random'})"
    for command in (["status"], ["report"], ["plot", "--figure", "length"]):
        done = worlds.raft(world, command[0], "outputs/tiny", *command[1:])
        assert done.returncode == 0, done.stderr


def test_a_function_is_known_by_what_it_uses_too():
    helper = "import re\nWORDS = ['please']\nPATTERN = re.compile('a')\ndef helper(text):\n    return text in WORDS\n"
    uses = (
        "def share(prompt, response, best=1.0):\n    return best * helper(response) + len(PATTERN.findall(response))\n"
    )
    known = content(helper + uses)
    assert known == content("OTHER = 3\n" + helper + "\n\n" + uses)
    for old, new in [
        ("'please'", "'thanks'"),
        ("text in", "text not in"),
        ("compile('a')", "compile('b')"),
        ("1.0", "2.0"),
    ]:
        assert content((helper + uses).replace(old, new)) != known, new
    same = "def share(prompt, response):\n    return share and 1.0\n"  # one that uses itself
    assert content(same) == content(same)


def test_an_attribute_is_no_global_of_its_name():
    text = "def share(prompt, response):\n    return response.count('a')\n"
    assert content(text) == content("count = object()\n" + text)


class Judge:
    def score(self, prompt: Any, response: str) -> float:
        return 1.0


def closure(words: list[str]) -> Callable[..., float]:
    return lambda prompt, response: float(response in words)


UNKNOWN = {
    "it is a closure over words": lambda: closure(["a"]),
    "it is a method, and not a function": lambda: Judge().score,
    "its source cannot be read": lambda: written("def share(prompt, response): return 1.0"),
    "a lambda has no source of its own": lambda: lambda prompt, response: 1.0,
    "it uses model, a Judge whose content raft cannot hash": lambda: cell(
        "def share(prompt, response):\n    return model.score(prompt, response)\n"
    ),
    "was changed since it was read": lambda: changed(),
}


def written(text: str) -> Callable[..., Any]:
    """A function that stands nowhere, as one typed at a prompt."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(text, names)
    return names["share"]


def changed() -> Callable[..., Any]:
    found = cell(SHARE)
    file = found.__code__.co_filename
    linecache.cache[file] = (1, None, SHARE.replace("max(1,", "max(2,").splitlines(keepends=True), file)
    return found


def test_the_calls_that_a_refusal_offers_make_what_they_say(world, capfd):
    other = cell(SHARE.replace("max(1,", "max(2,"))
    run = raft.run("recipe.yaml", quiet=True, reward=cell(SHARE), **SMALL)
    made = keys(run.folder)
    branch = run.branch(1, quiet=True, reward=other)
    assert branch.folder == Path("outputs/tiny-from-1") and keys(run.folder) == made
    assert branch.policy(0).resolve() == run.policy(0).resolve() and branch.iterations == 1
    responses, scores = "iterations/001/responses.jsonl.stamp.json", "iterations/001/scores.jsonl.stamp.json"
    assert keys(branch.folder)[responses] == made[responses] and keys(branch.folder)[scores] != made[scores]
    again = run.branch(1, quiet=True, reward=other)
    assert keys(again.folder) == keys(branch.folder)
    said = refusal(lambda: run.branch(1, quiet=True, reward=other, seed=5, name="third"))
    assert "these keys cannot differ" in said and "seed" in said
    rows = {"rows": ROWS[::-1], "per_iteration": 8}
    assert "prompts.path: " in refusal(lambda: run.branch(1, reward=other, prompts=rows, name="b"))
    assert not (run.folder / "given").exists()
    assert "no branch from iteration 7" in refusal(lambda: run.branch(7, reward=other, name="b"))
    assert not Path("outputs/third").exists() and not Path("outputs/b").exists() and capfd.readouterr() == ("", "")

    broken = cell("def share(prompt, response):\n    return len(respons)\n")
    assert "name 'respons' is not defined" in refusal(
        lambda: raft.run("recipe.yaml", restart=True, reward=broken, **SMALL)
    )
    assert keys(run.folder) == made and not list(Path("outputs").glob("*.before-*"))
    assert "and the recipe reads " in refusal(
        lambda: raft.run("outputs/tiny/resolved.yaml", restart=True, reward=other)
    )
    raft.run("recipe.yaml", restart=True, reward=other, **SMALL)
    (aside,) = Path("outputs").glob("tiny.before-*")
    assert keys(aside) == made and keys(run.folder)[scores] != made[scores]
    assert f"outputs/tiny was moved to {aside}" in capfd.readouterr().out
    assert branch.policy(0).resolve() == (aside / "iterations/000/policy").resolve()


def test_rows_may_come_with_a_branch_and_with_a_restart(world):
    own = {"rows": ROWS, "per_iteration": 8}
    run = raft.run("recipe.yaml", quiet=True, **SMALL | {"prompts": own})
    (file,) = (run.folder / "given").iterdir()
    branch = run.branch(1, quiet=True, evaluation={"references": [{"prompt": "the red fox ", "response": "ran."}]})
    assert any("perplexity" in name for name in branch.metrics[-1]) and not (branch.folder / "given").exists()
    said = refusal(lambda: raft.run(run.recipe, quiet=True, restart=True))
    assert str(file) in said and "copy that to another place" in said
    raft.run("recipe.yaml", quiet=True, restart=True, **SMALL | {"prompts": own})
    (aside,) = Path("outputs").glob("tiny.before-*")
    assert [one.name for one in (run.folder / "given").iterdir()] == [file.name]
    assert (aside / "given" / file.name).exists()  # what it was made of goes with it


@pytest.mark.parametrize("why", list(UNKNOWN))
def test_what_cannot_be_known_by_its_content_has_to_be_named(tmp_path, monkeypatch, why):
    monkeypatch.chdir(tmp_path)
    worlds.make_recipe(tmp_path)
    function = UNKNOWN[why]()
    getattr(function, "__globals__", {}).setdefault("model", Judge()) if "model" in why else None
    said = refusal(lambda: raft.run("recipe.yaml", reward=function))
    assert why in said and "raft.named(function, 'my reward v1')" in said
    assert not (tmp_path / "outputs").exists()
    functions: given.Functions = {}
    assert given.refer(raft.named(function, "my reward v1"), functions) == "<python>:my reward v1"
    assert functions["my reward v1"][0] is function


def test_a_named_function_is_known_by_its_name_alone(world):
    named = [raft.named(closure([word]), name) for word, name in [("a", "one"), ("b", "one"), ("b", "two")]]
    run = raft.run("recipe.yaml", quiet=True, reward=named[0], **SMALL)
    run.resume(quiet=True, reward=named[1])
    assert "reward.function: was '<python>:one', is '<python>:two'" in refusal(lambda: run.resume(reward=named[2]))
    two = {"reward": named[0], "evaluation": {"gold": raft.named(closure(["c"]), "one")}}
    assert "two functions are called 'one'" in refusal(lambda: raft.check("recipe.yaml", **two))
    for name in ("", " ", "a\nb", 3):
        assert "is not a name" in refusal(lambda name=name: raft.named(len, name))
    assert "cannot be called" in refusal(lambda: raft.named(3, "three"))


def test_rows_are_known_by_what_they_say_in_their_order(world):
    run = raft.run(
        "recipe.yaml", quiet=True, **SMALL | {"prompts": {"rows": datasets.Dataset.from_list(ROWS), "per_iteration": 8}}
    )
    made, path = worlds.fingerprint(run.folder), Path(run.recipe["prompts"]["path"])
    assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS and path.parent == run.folder / "given"
    assert run.recipe["prompts"]["max_prompt_length"] == 64  # how rows are read stays as the recipe has it
    other = datasets.Dataset.from_list([*ROWS, *ROWS[:1]]).select(range(len(ROWS)))
    assert other._fingerprint != datasets.Dataset.from_list(ROWS)._fingerprint
    for rows in (other, ROWS, tuple(ROWS)):
        raft.run("recipe.yaml", quiet=True, **SMALL | {"prompts": {"rows": rows, "per_iteration": 8}})
    run.resume(quiet=True, prompts=other)
    run.resume(quiet=True)
    assert worlds.raft(world, "resume", str(run.folder)).returncode == 0
    assert worlds.fingerprint(run.folder) == made
    said = refusal(
        lambda: raft.run("recipe.yaml", quiet=True, **SMALL | {"prompts": {"rows": ROWS[::-1], "per_iteration": 8}})
    )
    assert "prompts.path: was" in said and worlds.fingerprint(run.folder) == made


def test_rows_that_no_recipe_can_hold_are_refused_with_their_place(world):
    for rows, words in [
        ([{"prompt": "a"}, 3], r"prompts[1]: expected a text or a dict, found int"),
        ([{"prompt": object()}], "prompts[0] cannot be written as JSON"),
        ([{"prompt": "a", "x": float("nan")}], "prompts[0] cannot be written as JSON"),
    ]:
        assert words in refusal(lambda rows=rows: raft.run("recipe.yaml", prompts=rows))
    assert "per_iteration: 0" in refusal(lambda: raft.run("recipe.yaml", prompts={"rows": ROWS, "per_iteration": 0}))
    assert "no column mesages" in refusal(
        lambda: raft.run("recipe.yaml", prompts={"rows": ROWS, "messages": "mesages"})
    )
    assert list((world / "outputs").glob("*")) == []


def test_a_recipe_without_a_file_is_called_by_its_name(world, capsys):
    raft.run({**yaml.safe_load(Path("recipe.yaml").read_text()), "name": "mine"}, **SMALL)
    assert "outputs/mine  job: align  recipe: mine, given in Python\n" in capsys.readouterr().out


def test_errors_are_user_errors_with_the_messages_of_the_command_line(world):
    for call, words in [
        (lambda: raft.run("nowhere.yaml"), "no recipe at"),
        (lambda: raft.run("recipe.yaml", generator={"k": 0}), "argument: generator.k: 0 is out of range"),
        (lambda: raft.run("recipe.yaml", generatr={"k": 1}), "did you mean generator"),
        (lambda: raft.run({"name": "x"}), "<recipe>: policy: missing"),
        (lambda: raft.run("recipe.yaml", seed=object()), "seed: a object cannot stand in a recipe"),
        (lambda: raft.open_run("nowhere"), "is not a run"),
        (lambda: raft.check("recipe.yaml", policy={"model": "./nowhere"}), "policy.model"),
    ]:
        assert words in refusal(call)
    assert raft.check("recipe.yaml", reward=cell(SHARE), prompts=ROWS) == []
    assert not (world / "outputs").exists()


def test_a_run_is_read_as_its_files_are(finished):
    run = raft.open_run(finished)
    assert repr(run) == f"<raft.Run {finished}: job align, policies 0 to 1>"
    assert run.metrics == [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]

    def rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (finished / name).read_text().splitlines()]

    for held_out, place in ((False, "iterations/001"), (True, "iterations/001/evaluation")):
        groups = list(run.groups(1, held_out=held_out))
        said = [[one.text for one in group.responses] for group in groups]
        assert said == [[one["text"] for one in row["responses"]] for row in rows(f"{place}/responses.jsonl")]
        rewards = [[one.reward for one in group.scores] for group in groups]
        assert rewards == [[one["reward"] for one in row["scores"]] for row in rows(f"{place}/scores.jsonl")]
    gold = [[one.reward for one in group.gold or []] for group in run.groups(1, held_out=True)]
    assert gold == [[one["reward"] for one in row["scores"]] for row in rows("iterations/001/evaluation/gold.jsonl")]
    assert [one.id for one in run.prompts()] == [row["id"] for row in rows("iterations/001/prompts.jsonl")]
    assert [one.index for one in run.selected(1)] == [row["index"] for row in rows("iterations/001/selected.jsonl")]
    best = max((0, 1), key=lambda number: run.metrics[number]["reward/eval"])
    for which, number in (("best", best), ("last", 1), (0, 0)):
        assert run.policy(which) == finished / f"iterations/00{number}/policy"
    for ask in (run.groups, run.prompts, run.selected):
        assert "run.groups(0, held_out=True) has its answers" in refusal(lambda ask=ask: next(ask(0)))
    assert next(run.groups(0, held_out=True)).responses
    assert "has no iteration 7; the last complete one is 1" in refusal(lambda: next(run.groups(7)))


def test_a_file_that_was_changed_is_refused(world):
    run = raft.run("recipe.yaml", quiet=True, **SMALL)
    file = run.folder / "iterations/001/scores.jsonl"
    file.write_text(file.read_text().replace("0.0", "1.0", 1))
    assert "scores.jsonl is damaged" in refusal(lambda: next(run.groups(1)))


def test_the_process_is_left_as_it_was(world):
    def state() -> list[Any]:
        found = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)], dict(os.environ), Path.cwd()
        root, theirs = logging.getLogger(), logging.getLogger("transformers")
        logs = list(root.handlers), root.level, logging.raiseExceptions, list(theirs.handlers), theirs.propagate
        return [
            *found,
            logs,
            "letters" in sys.modules,
            random.getstate(),
            np.random.get_state()[1].tolist(),
            given._lent,
            gc.get_freeze_count(),
            sys.excepthook,
        ]

    class Hooks(raft.Callback):
        def on_checks(self, artifact: Any) -> None:
            sys.excepthook = lambda *fault: None  # as torch does with a process group, which an engine begins

    gc.unfreeze()  # as in a process of its own
    before = state()
    raft.run("recipe.yaml", callbacks=[Hooks()], **SMALL)
    after = state()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True] * len(before)
    refusal(lambda: raft.run("recipe.yaml", generator={"k": 0}))
    assert state() == before


def test_a_recipe_has_its_own_python_as_it_is_at_each_call(world):
    raft.run("recipe.yaml", quiet=True, **SMALL)
    (world / "letters.py").write_text(SHARE.replace("max(1,", "max(2,"))
    said = refusal(lambda: raft.run("recipe.yaml", quiet=True, **SMALL))
    assert "reward.function: the source of letters.py (letters:share) changed" in said


def test_a_notebooks_event_loop_is_in_nobodys_way(world):
    class Asks(raft.Callback):
        def on_checks(self, artifact: Any) -> None:
            asked.append(asyncio.run(asyncio.sleep(0, "answer")))
            raise ZeroDivisionError

    asked: list[str] = []

    async def notebook() -> None:
        with pytest.raises(ZeroDivisionError):
            raft.run("recipe.yaml", quiet=True, callbacks=[Asks()])
        assert await asyncio.sleep(0, "still here") == "still here"

    asyncio.run(notebook())
    assert asked == ["answer"]


def test_importing_raft_imports_nothing_heavy():
    text = "import sys, raft; found = set(dir(raft)) | set(sys.modules); print(*sorted(found))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    found = set(done.stdout.split())
    assert set(raft.__all__) <= found and not {"torch", "omegaconf", "numpy", "yaml", "raft.api"} & found
    assert all(getattr(raft, name).__doc__ for name in raft.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'rnu'"):
        _ = raft.rnu
