"""Small real worlds for the tests: policies with random weights, and recipes that take seconds."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from raft.models import from_scratch

TINY = {
    "model_type": "llama", "hidden_size": 64, "num_attention_heads": 2, "head_dim": 32, "num_hidden_layers": 2,
    "intermediate_size": 128, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip
WORDS = "red green blue big small old new fox owl hen cat dog runs sits eats sees the a and".split()  # noqa: SIM905


def prompts(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"p{n:03d}", "prompt": f"the {WORDS[n % 7]} {WORDS[7 + n % 5]} {n} ", "letter": WORDS[n % 7][0]}
        for n in range(count)
    ]


def make_policy(folder: Path, seed: int = 0) -> Path:
    from_scratch.make(folder, (row["prompt"] for row in prompts(200)), TINY, 300, seed)
    return folder


def make_recipe(folder: Path, **changes: Any) -> Path:
    """A recipe of an alignment that runs in seconds; `changes` are merged into its sections."""
    if not (folder / "base").exists():
        make_policy(folder / "base")
        (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts(60)))
        (folder / "letters.py").write_text(
            "def share(prompt, response):\n"
            '    """How much of a response is the letter that its prompt asks for."""\n'
            "    return response.count(prompt.meta['letter']) / max(1, len(response))\n"
        )
    recipe: dict[str, Any] = {
        "name": "tiny",
        "policy": {"model": "base"},
        "iterations": 2,
        "prompts": {"kind": "file", "path": "prompts.jsonl", "per_iteration": 16, "max_prompt_length": 64},
        "generator": {"kind": "transformers", "k": 4, "max_tokens": 12, "batch_size": 8},
        "reward": {"kind": "rule", "function": "letters:share"},
        "trainer": {"kind": "sft", "learning_rate": 1e-3, "num_train_epochs": 1, "batch_size": 8},
        "evaluation": {"count": 8, "k": 2, "gold": {"kind": "rule", "function": "length"}},
    }
    for key, value in changes.items():
        replaces = not isinstance(value, dict) or value.get("kind", recipe.get(key, {}).get("kind")) != recipe.get(
            key, {}
        ).get("kind")
        recipe[key] = value if replaces else {**recipe.get(key, {}), **value}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def raft(folder: Path, *arguments: Any, typed: str = "") -> subprocess.CompletedProcess[str]:
    """The command line, as a user calls it in a folder; `typed` is what the command reads."""
    command = Command(folder, *arguments, typed=typed)
    stdout, stderr = command.communicate()
    return subprocess.CompletedProcess(["raft", *map(str, arguments)], command.wait(), stdout, stderr)


class Command:
    """A command of raft at work; its methods are those of subprocess.Popen.

    Its environment is the one that the tests began with: torch adds to that of this process while it trains.
    """

    def __init__(self, folder: Path, *arguments: Any, typed: str = ""):
        self.files = tempfile.TemporaryDirectory()
        names = {name: os.path.join(self.files.name, name) for name in ("stdin", "stdout", "stderr", "told")}  # noqa: PTH118
        for name in ("stdin", "stdout", "stderr"):
            Path(names[name]).write_text(typed if name == "stdin" else "")
        os.mkfifo(names["told"])
        asked = {**names, "folder": str(Path(folder).absolute()), "arguments": list(map(str, arguments))}
        print(json.dumps(asked), file=zygote().stdin, flush=True)
        self.told = open(names["told"])
        self.pid = int(self.told.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit status, None while it is at work."""
        ready, _, _ = select.select([self.told], [], [], 0)
        return self.wait() if ready else self.returncode

    def wait(self) -> int:
        """Its exit status, when it has ended."""
        if self.returncode is None:
            self.returncode = int(self.told.readline())
        return self.returncode

    def communicate(self) -> tuple[str, str]:
        """What it said on its standard output and on its standard error, when it has ended."""
        self.wait()
        stdout, stderr = (Path(self.files.name, name).read_text() for name in ("stdout", "stderr"))
        return stdout, stderr

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}  # of commands; none of them reaches a network


@cache
def zygote() -> "subprocess.Popen[str]":
    """The process of tests/support/zygote.py, which ends with this one."""
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("zygote.py"))], text=True, env=ENVIRONMENT,
        stdin=subprocess.PIPE,
    )  # fmt: skip


# What must be the same to the byte, however often a run was killed; timings live in the stamps.
EXACT = ("*.jsonl", "metrics.json", "*.safetensors", "probe.json")


def fingerprint(run: Path) -> dict[str, bytes]:
    """The exact content of a run's artifacts, by name."""
    files = sorted({file for pattern in EXACT for file in run.rglob(pattern) if not file.is_symlink()})
    return {str(file.relative_to(run)): file.read_bytes() for file in files}
