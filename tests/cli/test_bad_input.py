"""Bad input: one clear message that names the key or file and the way out, exit status 2, nothing lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import worlds


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    worlds.make_recipe(folder)
    bare = folder / "bare"  # no chat template, no padding token
    shutil.copytree(folder / "base", bare)
    (bare / "chat_template.jinja").unlink()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (bare / name).exists():
            content = json.loads((bare / name).read_text())
            content.pop("pad_token", None)
            content.pop("chat_template", None)
            (bare / name).write_text(json.dumps(content))
    (folder / "empty.jsonl").write_text("")
    (folder / "broken.jsonl").write_text('{"prompt": "fine"}\n{"prompt": \n')
    (folder / "long.jsonl").write_text((json.dumps({"prompt": "word " * 400, "letter": "w"}) + "\n") * 20)
    (folder / "some").mkdir()
    (folder / "some" / "file").write_text("mine")
    return folder


CASES = {
    "a wrong key": (["generator.temprature=1"], ["generator.temprature", "did you mean temperature"]),
    "K = 0": (["generator.k=0"], ["generator.k"]),
    "a missing file of prompts": (["prompts.path=nowhere.jsonl"], ["prompts.path", "nowhere.jsonl"]),
    "an unknown model": (["policy.model=./nowhere"], ["policy.model", "nowhere"]),
    "a hub model without a network": (["policy.model=owner/nothing"], ["owner/nothing", "HF_HUB_OFFLINE"]),
    "an empty set of prompts": (["prompts.path=empty.jsonl"], ["evaluation.count|prompts"]),
    "a broken line": (["prompts.path=broken.jsonl"], ["broken.jsonl:2"]),
    "prompts that are too long": (
        ["prompts.path=long.jsonl", "evaluation.count=1"],
        ["evaluation.count|max_prompt_length"],
    ),
    "more than the context": (
        ["prompts.max_prompt_length=250", "generator.max_tokens=250"],
        ["prompts.max_prompt_length", "256"],
    ),
    "chat without a template": (["policy.model=bare", "prompts.format=chat"], ["prompts.format", "chat template"]),
    "too few prompts": (["prompts.per_iteration=500"], ["prompts.per_iteration", "52"]),
    "a rule that does not exist": (["reward.function=letters:shar"], ["reward.function", "did you mean share"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_message(world, case):
    import re

    overrides, words = CASES[case]
    name = "bad-" + "".join(one for one in case if one.isalpha())
    done = worlds.raft(world, "run", "recipe.yaml", f"name={name}", *overrides)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    for word in words:
        assert re.search(word, done.stderr), done.stderr


def test_a_policy_without_a_padding_token_is_no_fault(world):
    done = worlds.raft(world, "run", "recipe.yaml", "name=nopad", "policy.model=bare", "iterations=1")
    assert done.returncode == 0, done.stderr


def test_a_folder_that_is_no_run_is_left_alone(world):
    (world / "outputs").mkdir(exist_ok=True)
    shutil.copytree(world / "some", world / "outputs" / "some")
    done = worlds.raft(world, "run", "recipe.yaml", "name=some")
    assert done.returncode == 2 and "is not a run" in done.stderr
    assert [file.name for file in (world / "outputs" / "some").iterdir()] == ["file"]


def test_rewards_that_cannot_be_given_stop_the_run_and_are_never_zero(world):
    (world / "moods.py").write_text("def moody(prompt, response):\n    raise ValueError('not today')\n")
    done = worlds.raft(world, "run", "recipe.yaml", "name=moody", "reward.function=moods:moody")
    assert done.returncode == 2 and "selection.max_failed_fraction" in done.stderr and "not today" in done.stderr
    scores = world / "outputs" / "moody" / "iterations" / "000" / "evaluation" / "scores.jsonl.partial"
    rows = [json.loads(line) for line in open(scores)][1:]
    assert rows and all(
        one.get("reward") is None and "not today" in one["error"] for row in rows for one in row["scores"]
    )


@pytest.mark.nightly
def test_a_full_disk_loses_nothing_and_the_same_command_goes_on(world, tmp_path):
    """The disk is told to be full when the first policy is brought to it, which happens beside the rest."""
    script = (
        "import errno, sys\n"
        "from raft.store import runs\n"
        "whole = runs.commit\n"
        "def full(temporary, path):\n"
        "    if path.name == 'policy' and path.parent.name == '001':\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "    whole(temporary, path)\n"
        "runs.commit = full\n"
        "from raft.cli.main import main\n"
        "main(sys.argv[1:])\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, "run", "recipe.yaml", "name=full"],
        cwd=world,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "the disk is full" in done.stderr and "resume with" in done.stderr
    assert "Traceback" not in done.stderr
    kept = world / "outputs" / "full" / "iterations" / "001" / "scores.jsonl"
    before = kept.stat().st_mtime_ns
    assert worlds.raft(world, "run", "recipe.yaml", "name=full").returncode == 0
    assert kept.stat().st_mtime_ns == before


def test_model_output_cannot_drive_the_terminal():
    from raft.core.terminal import safe

    hostile = "a\x1b[2Jb\x07c\u202ed\r\u009b31m"
    shown = safe(hostile)
    assert (
        "\x1b" not in shown
        and "\x07" not in shown
        and "\u202e" not in shown
        and "\r" not in shown
        and "\u009b" not in shown
    )
    assert safe("日本語\nعربى\tok") == "日本語\nعربى\tok"


@pytest.mark.parametrize("command", ["run", "check", "plot"])
def test_an_unknown_option_of_a_command_is_answered_with_the_usage_of_that_command(world, command):
    done = worlds.raft(world, command, "recipe.yaml", "--nosuch")
    assert done.returncode == 2 and done.stderr.startswith(f"usage: raft {command} ")
    assert done.stderr.endswith(f"raft {command}: error: unrecognized arguments: --nosuch\n")
