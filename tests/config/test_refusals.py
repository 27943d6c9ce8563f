"""Bad input is refused in one message: what is wrong, where, and what to do. The inputs are tests/bad_inputs/*.yaml.

Each file is a list of inputs. `recipe` is laid over the good recipe below by dotted keys, `text` is put behind it as it
stands, `files` are written beside it, and `command` (by default `check r.yaml`) is carried out in that folder by
the command line inside this process. `says` are the words that the message on standard error has to hold; `status` is
the exit status, by default 2. `links` and `modes` make links and set permissions. A folder `base` with a tiny policy
and `p.jsonl` with eight prompts are always there.
"""

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import worlds
import yaml

from raft.cli import main as cli

FOLDER = Path(__file__).parents[1] / "bad_inputs"
ROWS = {
    f"{file.stem}: {row['name']}": row for file in FOLDER.glob("*.yaml") for row in yaml.safe_load(file.read_text())
}
GOOD: dict[str, Any] = {
    "name": "x",
    "iterations": 1,
    "policy": {"model": "base"},
    "prompts": {"kind": "file", "path": "p.jsonl", "per_iteration": 4, "max_prompt_length": 64},
    "generator": {"kind": "transformers", "k": 2, "max_tokens": 8},
    "reward": {"kind": "rule", "function": "length"},
    "trainer": {"kind": "sft", "learning_rate": 0.001, "num_train_epochs": 1, "batch_size": 8},
    "evaluation": {"count": 2, "k": 2},
}
LONGEST = 60.0  # seconds that one input may take


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return worlds.make_policy(tmp_path_factory.mktemp("policy") / "base")


@contextlib.contextmanager
def modules_of(folder: Path) -> Iterator[None]:
    """Python that was imported out of the folder is forgotten at the end, as by the end of a command."""
    before = set(sys.modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]


def prepare(folder: Path, row: dict[str, Any], base: Path) -> None:
    recipe = json.loads(json.dumps(GOOD))
    for key, value in row.get("recipe", {}).items():
        *above, last = key.split(".")
        section = recipe
        for name in above:
            section = section.setdefault(name, {})
        section[last] = value
    (folder / "base").symlink_to(base)
    (folder / "p.jsonl").write_text("".join(json.dumps(one) + "\n" for one in worlds.prompts(8)))
    (folder / "r.yaml").write_text(
        yaml.safe_dump(recipe, sort_keys=False) + row.get("text", ""), errors="surrogatepass"
    )
    for name, text in row.get("files", {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    for name, target in row.get("links", {}).items():
        (folder / name).symlink_to(target)
    for name, mode in row.get("modes", {}).items():
        (folder / name).chmod(mode)


@pytest.mark.parametrize("name", ROWS)
def test_bad_input_is_refused_in_one_message(name, tmp_path, base, monkeypatch, capfd):
    row = ROWS[name]
    if row.get("modes") and os.geteuid() == 0:
        pytest.skip("who is root reads everything")
    prepare(tmp_path, row, base)
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    with modules_of(tmp_path):
        try:
            status = cli.execute(cli.parse(row.get("command", ["check", "r.yaml"])))
        except SystemExit as ended:  # argparse's own refusals
            status = ended.code
    said = capfd.readouterr().err
    assert status == row.get("status", 2), said
    assert "Traceback" not in said
    for words in row.get("says", []):
        assert words in said
    assert said.isprintable() or all(one.isprintable() or one in "\n\t" for one in said)
    assert time.monotonic() - began < LONGEST


def test_the_good_recipe_is_good(tmp_path, base, monkeypatch):
    prepare(tmp_path, {}, base)
    monkeypatch.chdir(tmp_path)
    assert cli.execute(cli.parse(["check", "r.yaml"])) == 0
    shutil.rmtree(tmp_path / "outputs", ignore_errors=True)
