"""What a library says of itself: what it says when it is imported here, told once, and never read from its source."""

import ast
import dataclasses
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raft.core import library_options
from raft.core.errors import UserError

RAFT = Path(library_options.__file__).parents[1]


SMALL = """
import dataclasses
from dataclasses import dataclass, field
from typing import Optional

@dataclass
class Base:
    inherited: int = 0

@dataclass
class Options(Base):
    count: int = 1
    rate: "float | None" = None
    name: Optional[str] = None
    either: int | bool | str = 0
    names: list[str] | None = None
    made: int = field(init=False, default=0)

def start(count: int, anything, *, rate: "float | None" = None):
    pass

class Started:
    def __init__(self, count: int = 1):
        pass

def of_any_name(count: int, **options):
    pass

TABLE = {"llama": ["q", "v"]}
print("a word of its own")
"""
TOLD = {
    "options": {
        "count": ["int"], "rate": ["float", "NoneType"], "name": ["str", "NoneType"], "either": ["int", "bool", "str"],
        "names": [],
    },
    "call": {"count": ["int"], "anything": [], "rate": ["float", "NoneType"]},
    "class": {"count": ["int"]},
    "free": {},
    "table": {"llama": ["q", "v"]},
}  # fmt: skip
SMALL_ASKED = {
    "options": "small:Options", "call": "small:start", "class": "small:Started", "free": "small:of_any_name",
    "table": "small:TABLE",
}  # fmt: skip


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How processes were started; the cache is empty at first, and `small` is a library that can be asked."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library_options, "ask", library_options.ask.__wrapped__)
    monkeypatch.setitem(library_options.ASKED, "small", SMALL_ASKED)
    (tmp_path / "small.py").write_text(SMALL)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{RAFT.parent}")
    started: list[str] = []
    run = subprocess.run

    def counted(command: list[str], **options: object) -> object:
        started.append(command[-1])
        return run(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", counted)
    return started


def cached(folder: Path) -> Path:
    (file,) = (folder / "cache" / "raft").iterdir()
    return file


def told(library: str) -> dict[str, dict[str, Any]]:
    """What a process of its own would answer for it; the libraries are imported here anyway."""
    return {name: dict(library_options._answer(target)) for name, target in library_options.ASKED[library].items()}


def test_the_options_of_training_and_of_adapters_are_those_of_the_classes():
    from peft import LoraConfig, PeftConfig
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    from transformers import TrainingArguments

    training = told("transformers")["training"]
    assert set(training) == {item.name for item in dataclasses.fields(TrainingArguments) if item.init}
    by_hand = {"adam_beta1": ["float"], "full_determinism": ["bool"], "optim_args": ["str", "NoneType"]}
    assert by_hand.items() <= training.items() and training["lr_scheduler_type"] == []
    peft = told("peft")
    inherited = {item.name for item in dataclasses.fields(PeftConfig)}
    assert set(peft["lora"]) == {item.name for item in dataclasses.fields(LoraConfig) if item.init} - inherited
    assert peft["targets"] == TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING


@pytest.mark.engine
def test_the_options_and_architectures_of_the_engine_are_those_of_vllm():
    pytest.importorskip("vllm")
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.models import ModelRegistry

    vllm = told("vllm")
    assert set(vllm["engine"]) == {item.name for item in dataclasses.fields(EngineArgs)}
    assert {"LlamaForCausalLM", "Qwen3ForCausalLM"} <= set(vllm["architectures"]) <= set(ModelRegistry.models)


def test_a_library_tells_its_own_options_with_their_plain_types_and_its_tables(asked):
    assert library_options.ask("small") == TOLD


def test_a_second_question_starts_no_process(asked, tmp_path):
    assert library_options.ask("small") == library_options.ask("small") == TOLD
    assert len(asked) == 1 and json.loads(cached(tmp_path).read_bytes()) == TOLD
    assert cached(tmp_path).name.endswith(f"-python-{platform.python_version()}.json")


def test_a_check_with_a_known_answer_imports_nothing_heavy(asked, tmp_path):
    library_options._cached("peft").parent.mkdir(parents=True)
    library_options._cached("peft").write_text('{"lora": {"r": ["int"]}, "targets": {}}')
    script = (
        "import subprocess, sys; from raft.trainers.sft import SFT; del subprocess.Popen; "
        "found = dict(SFT(lora={'r': 8, 'q': 1}).faults()); assert list(found) == ['lora.q'], found; "
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("damage", ["", "{", "[]", "3", "{}", '{"options": 3, "table": {}}', '{"table": {}}', "\0"])
def test_a_damaged_answer_in_the_cache_is_asked_for_again(asked, tmp_path, damage):
    library_options.ask("small")
    cached(tmp_path).write_text(damage)
    assert library_options.ask("small") == TOLD == json.loads(cached(tmp_path).read_bytes())
    assert len(asked) == 2


def test_the_answer_of_another_version_is_not_taken(asked, monkeypatch):
    library_options.ask("small")
    monkeypatch.setattr(library_options.metadata, "version", lambda name: "2.0")
    assert library_options.ask("small") == TOLD
    assert len(asked) == 2


def test_a_cache_that_cannot_be_written_is_done_without(asked, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    assert library_options.ask("small") == TOLD and (tmp_path / "cache").read_text() == "no folder"


def test_a_library_that_cannot_be_imported_is_named(asked, tmp_path):
    (tmp_path / "small.py").write_text("raise RuntimeError('half installed')")
    with pytest.raises(UserError, match="small unknown cannot be imported: RuntimeError: half installed; install it"):
        library_options.ask("small")


def test_no_source_of_a_library_is_parsed():
    def parses(file: Path) -> bool:
        imported = (one for one in ast.walk(ast.parse(file.read_text())) if isinstance(one, ast.Import))
        return any(name.name == "ast" for one in imported for name in one.names)

    assert [file.name for file in RAFT.rglob("*.py") if parses(file)] == []
    assert parses(Path(__file__))
