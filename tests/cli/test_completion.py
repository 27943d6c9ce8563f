"""raft completion: what a shell offers at TAB, in the shells themselves."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raft.report.figures import picture

BASH = """eval "$(raft completion bash)"
while IFS= read -r line; do
  COMP_LINE=$line COMP_POINT=${#line} COMP_TYPE=9 COMPREPLY=()
  _python_argcomplete raft
  echo "${COMPREPLY[*]}"
done"""


def shell(folder: Path, *command: str, typed: str = "") -> list[str]:
    """The lines that a shell with raft on its path prints."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "raft").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m raft "$@"\n')
    (folder / "bin" / "raft").chmod(0o755)
    paths = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment = {**os.environ, **paths, "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, input=typed, text=True, capture_output=True, env=environment, check=True)
    return done.stdout.splitlines()


def test_bash_completes_commands_options_recipes_runs_sections_and_figures(tmp_path: Path):
    (tmp_path / "quickly.yaml").write_text("name: own")
    for name in ("outputs/one", "outputs/two", "elsewhere/three", "outputs/no-run"):
        (tmp_path / name).mkdir(parents=True)
        if name != "outputs/no-run":
            (tmp_path / name / "run.json").write_text("{}")
    offered = {
        "raft stat": {"status"},
        "raft ev": {"eval"},
        "raft run --re": {"--restart"},
        "raft run quick": {
            "quickly.yaml",
            "quickstart",
            "quickstart-dpo",
            "quickstart-policy",
            "quickstart-reward",
        },
        "raft report outputs/": {"outputs/one", "outputs/two"},
        "raft report elsewhere/": {"elsewhere/three"},
        "raft compare outputs/one outputs/t": {"outputs/two"},
        "raft plot --figure ": set(picture.FIGURES),
        "raft options reward.j": {"reward.judge"},
    }
    lines = shell(tmp_path, "bash", "-c", BASH, typed="".join(f"{line}\n" for line in offered))
    assert {line: set(found.split()) for line, found in zip(offered, lines, strict=True)} == offered


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_completes_recipes(tmp_path: Path):
    asked = "raft completion fish | source; complete --do-complete 'raft run quickstart-p'"
    assert shell(tmp_path, "fish", "--no-config", "-c", asked) == ["quickstart-policy"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_takes_the_script(tmp_path: Path):
    asked = 'autoload -U compinit; compinit -u; eval "$(raft completion zsh)"; print $_comps[raft]'
    assert shell(tmp_path, "zsh", "-f", "-c", asked) == ["_python_argcomplete"]


def test_raft_alone_shows_its_help(tmp_path: Path):
    done = subprocess.run([sys.executable, "-m", "raft"], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 2 and "Start with: raft run quickstart" in done.stdout and not done.stderr
