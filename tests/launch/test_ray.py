"""launch: {kind: ray}: the artifacts of one process on a real cluster, whatever dies meanwhile."""

import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import processes
import pytest
import reward_models
import torch
import worlds
import yaml
from safetensors.torch import load_file
from worlds import fingerprint, make_recipe

import raft
from raft.config import recipe as recipes
from raft.core import logs, progress
from raft.core.errors import UserError
from raft.launch import worker
from raft.launch.ray import Block, Ray, Work, _check_off
from raft.launch.worker import Worker

ray = pytest.importorskip("ray", reason="ray is not installed: raft's extra ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

SCORER = {"kind": "model", "model": "scorer", "template": "plain", "max_length": 128}
# what is made before the weights of more than one rank differ in their last bits
EARLY = (
    "iterations/000/",
    "iterations/001/prompts",
    "iterations/001/responses",
    "iterations/001/s",
    "pool",
    "evaluation",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A recipe whose reward is a model, and what one process makes of it; that folder is the current one."""
    folder = tmp_path_factory.mktemp("world")
    reward_models.save(folder / "scorer", "LlamaForSequenceClassification", **reward_models.SIZE)
    make_recipe(folder, iterations=1, reward=SCORER)
    before = Path.cwd()
    os.chdir(folder)
    try:
        raft.run("recipe.yaml", name="local", quiet=True)
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core."""
    found = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    found.add_node(num_cpus=1)
    yield found
    found.shutdown()


def run(name: str, address: str, **launch: Any) -> dict[str, bytes]:
    """The artifacts of a run on a cluster."""
    launch = {"kind": "ray", "address": address, "env": as_many(), **launch}
    raft.run("recipe.yaml", name=name, launch=launch)
    return fingerprint(Path("outputs") / name)


def as_many() -> dict[str, str]:
    """As many threads as this process has: with another number a few rewards differ in their last bit."""
    return {"OMP_NUM_THREADS": str(torch.get_num_threads())}


def early(artifacts: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in artifacts.items() if name.startswith(EARLY)}


def died(run: Path) -> list[str]:
    """The artifacts during which a worker died."""
    stamps = {file: json.loads(file.read_text()) for file in run.rglob("*.stamp.json")}
    return [str(file) for file, stamp in stamps.items() if any(lane["died"] for lane in stamp.get("workers", []))]


def workers() -> list[int]:
    """The processes of this test's workers that are at work."""
    found = []
    for pid in processes.family(os.getpid()):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Worker.run"):
                found.append(pid)
        except OSError:
            continue
    return found


@pytest.mark.engine
@pytest.mark.nightly
def test_two_nodes_make_what_one_process_makes(world, cluster):
    local, two = fingerprint(world / "outputs" / "local"), run("two", cluster.address)
    assert early(two) == early(local)
    assert len(early(local)) > 6
    assert two.keys() == local.keys()
    assert not died(world / "outputs" / "two")


@pytest.mark.engine
@pytest.mark.nightly
def test_engines_on_two_nodes_write_what_one_engine_writes(world, cluster):
    """vLLM is fed while it works: prompts go to whichever engine has room."""
    recipe = yaml.safe_load((world / "recipe.yaml").read_text())
    recipe["generator"] = {"kind": "vllm", "k": 4, "max_tokens": 12}
    raft.run(recipe, name="engine", quiet=True)
    raft.run(recipe, name="engines", quiet=True, launch={"kind": "ray", "address": cluster.address, "env": as_many()})
    one, two = (fingerprint(world / "outputs" / name) for name in ("engine", "engines"))
    assert early(two) == early(one)
    assert not died(world / "outputs" / "engines")


@pytest.mark.engine
@pytest.mark.nightly
def test_workers_of_their_own_score_while_others_generate_and_scores_stay_the_same(world, cluster):
    recipe = yaml.safe_load((world / "recipe.yaml").read_text())
    items = [f"the fox counts {number} plums and says " for number in range(200)]
    recipe["prompts"] = {"kind": "list", "items": items, "per_iteration": 180, "max_prompt_length": 64}
    raft.run(recipe, name="alone", quiet=True)
    launch = {"kind": "ray", "address": cluster.address, "env": as_many(), "reward_workers": 1}
    raft.run(recipe, name="apart", quiet=True, launch=launch)
    one, two = (fingerprint(world / "outputs" / name) for name in ("alone", "apart"))
    assert early(two) == early(one)
    stamp = json.loads((world / "outputs/apart/iterations/001/responses.jsonl.stamp.json").read_text())
    assert sorted(lane["done"] for lane in stamp["workers"]) == [64, 64, 180], "two blocks were scored meanwhile"
    assert len({lane["worker"] for lane in stamp["workers"]}) == 2


@pytest.mark.engine
@pytest.mark.nightly
def test_a_worker_of_two_devices_splits_its_engine_and_trains_with_two_ranks(world):
    recipe = yaml.safe_load((world / "recipe.yaml").read_text())
    recipe["generator"] = {"kind": "vllm", "k": 4, "max_tokens": 12, "engine_args": {"tensor_parallel_size": 2}}
    (world / "split.yaml").write_text(yaml.safe_dump(recipe))
    launch = {"kind": "ray", "address": "local", "workers": 1, "gpus_per_worker": 2, "shard": "fsdp"}
    for name, options in {"split-alone": {}, "split": launch}.items():
        given = [f"launch.{key}={value}" for key, value in options.items()]
        command = [sys.executable, "-m", "raft", "run", "split.yaml", f"name={name}", *given]
        subprocess.run(command, cwd=world, check=True)  # vLLM starts its processes by the main module of this one
    one, two = (fingerprint(world / "outputs" / name) for name in ("split-alone", "split"))
    made = "iterations/001/responses.jsonl"
    assert two[made] == one[made]
    assert two.keys() == one.keys()
    weights = [
        load_file(f"outputs/{name}/iterations/001/policy/model.safetensors") for name in ("split-alone", "split")
    ]
    before = load_file("base/model.safetensors")
    moved = max(float((weights[0][name] - before[name]).abs().max()) for name in before if name in weights[0])
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) < 0.01 * moved


@pytest.mark.engine
@pytest.mark.nightly
def test_a_node_that_joins_while_responses_are_made_takes_part(tmp_path):
    items = [{"prompt": f"the fox counts {number} plums ", "letter": "e"} for number in range(700)]
    prompts = {"kind": "list", "items": items}
    make_recipe(tmp_path, iterations=1, prompts={**prompts, "per_iteration": 600, "max_prompt_length": 64})
    nodes = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        process = worlds.Command(tmp_path, "run", "recipe.yaml", "launch.kind=ray", f"launch.address={nodes.address}")
        run = tmp_path / "outputs" / "tiny"
        while process.poll() is None and not (run / "iterations/001/responses.jsonl.partial").exists():
            time.sleep(0.05)
        nodes.add_node(num_cpus=1)
        until_its_end(process)
        assert process.wait() == 0, process.communicate()
    finally:
        nodes.shutdown()
    stamp = json.loads((run / "iterations/001/responses.jsonl.stamp.json").read_text())
    lanes = {lane["worker"].split("/")[0]: lane["done"] for lane in stamp["workers"]}
    assert len(lanes) == 2 and min(lanes.values()) > 0 and sum(lanes.values()) == 600


@pytest.mark.engine
@pytest.mark.nightly
def test_a_policy_that_is_sharded_over_two_nodes_is_that_of_whole_weights(world, cluster):
    whole, sharded = (run(how, cluster.address, shard=how) for how in ("none", "fsdp"))
    assert early(sharded) == early(whole)
    one, two = (load_file(f"outputs/{how}/iterations/001/policy/model.safetensors") for how in ("none", "fsdp"))
    before = load_file("base/model.safetensors")
    moved = max(float((one[name] - before[name]).abs().max()) for name in one)
    assert moved > 0
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 0.01 * moved


@pytest.mark.engine
@pytest.mark.nightly
@pytest.mark.parametrize(
    "kind, selection",
    [("dpo", "best-vs-worst"), ("kto", "best-vs-worst"), ("policy-gradient", "advantage"), ("sft", "reward-weighted")],
)
def test_every_trainer_learns_on_two_nodes_what_it_learns_in_one_process(world, cluster, kind, selection):
    if kind in ("dpo", "kto"):
        pytest.importorskip("trl", reason="TRL is not installed: raft's extra trl")
    recipe = yaml.safe_load((world / "recipe.yaml").read_text())
    recipe["trainer"] = {"kind": kind, "learning_rate": 1e-3, "num_train_epochs": 1, "batch_size": 8}
    recipe["selection"] = {"kind": selection}
    nodes = {"kind": "ray", "address": cluster.address, "env": as_many()}
    for name, launch in {f"{kind}-one": {}, f"{kind}-two": {"launch": nodes}}.items():
        raft.run(recipe, name=name, quiet=True, **launch)
    one, two = (fingerprint(world / "outputs" / f"{kind}-{name}") for name in ("one", "two"))
    assert early(two) == early(one) and two.keys() == one.keys()
    assert not died(world / "outputs" / f"{kind}-two")
    stamp = json.loads((world / f"outputs/{kind}-two/iterations/001/policy.stamp.json").read_text())
    assert len(stamp["workers"]) == 2
    weights = [load_file(f"outputs/{kind}-{name}/iterations/001/policy/model.safetensors") for name in ("one", "two")]
    before = load_file("base/model.safetensors")
    moved = max(float((weights[0][name] - before[name]).abs().max()) for name in weights[0])
    assert moved > 0
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) < 0.01 * moved


@pytest.mark.engine
def test_a_worker_that_is_killed_is_replaced_and_nothing_else_changes(world, cluster):
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            if found := workers():
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
            time.sleep(0.001)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    found = run("killed", cluster.address)
    thread.join(5)
    local = fingerprint(world / "outputs" / "local")
    assert killed
    assert len(early(local)) > 6
    assert early(found) == early(local) and found.keys() == local.keys()
    log = Path("outputs/killed/logs/latest.log").read_text()
    for words in (
        r"worker \w{8}/0 starts", r"worker \w{8}/0 is ready", r"worker \w{8}/0 died with", "a worker died: ",
        r"outputs/killed/iterations/001/responses.jsonl: generating responses",
        r"outputs/killed/iterations/001/responses.jsonl is made: [\d.]+ s, 16 rows, [\d.]+ a second",
        r"worker \w{8}/0: 8 in [\d.]+ s", r"worker \w{8}/0: raft.launch.worker: process \d+ on ",
    ):  # fmt: skip
        assert re.search(words, log), words


@pytest.mark.engine
@pytest.mark.nightly
def test_a_prompt_that_kills_every_worker_is_named(world, cluster):
    (world / "deadly.py").write_text(
        "import os\n"
        "from dataclasses import dataclass\n"
        "from raft.generators.transformers import Transformers\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Deadly(Transformers):\n"
        "    def generate(self, policy, prompts, seed):\n"
        "        def watched():\n"
        "            for prompt in prompts:\n"
        "                if prompt.id == 'p003':\n"
        "                    os._exit(1)\n"
        "                yield prompt\n"
        "        return super().generate(policy, watched(), seed)\n"
    )
    generator = {"kind": "deadly:Deadly", "k": 4, "max_tokens": 12, "batch_size": 1}
    with pytest.raises(UserError, match=r"prompt p003 has been under way each time that 2 workers died"):
        raft.run(
            "recipe.yaml", name="deadly", quiet=True, generator=generator,
            prompts={"per_iteration": None}, evaluation={"count": 59},
            launch={"kind": "ray", "address": cluster.address, "failures": 2},
        )  # fmt: skip


# Behind those that share a cluster: see docs/lab-notes.md on joining a cluster again.
@pytest.mark.engine
@pytest.mark.nightly
@pytest.mark.parametrize("count", [1, 3])
def test_one_and_three_workers_make_it_too(world, count):
    """In a cluster that is started here; three workers may share two cores."""
    found = run(f"workers{count}", "local", workers=count)
    assert early(found) == early(fingerprint(world / "outputs" / "local"))


@pytest.mark.engine
@pytest.mark.nightly
def test_a_recipe_and_the_one_that_it_needs_are_both_made_by_the_workers(world):
    """One cluster after the other in one process. A worker has the priority that a run has without Ray."""
    recipe = yaml.safe_load((world / "recipe.yaml").read_text())
    (world / "polite.py").write_text(
        "import os\n"
        "from dataclasses import dataclass\n"
        "from raft.generators.transformers import Transformers\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Polite(Transformers):\n"
        "    def generate(self, policy, prompts, seed):\n"
        f"        with open({str(world / 'priorities')!r}, 'a') as file:\n"
        "            print(os.getpid(), os.getpriority(os.PRIO_PROCESS, 0), file=file)\n"
        "        return super().generate(policy, prompts, seed)\n"
    )
    recipe["generator"] = {"kind": "polite:Polite", "k": 4, "max_tokens": 12, "batch_size": 8}
    rows = [{"prompt": f"the fox {number} ", "response": "runs"} for number in range(32)]
    first = {
        "job": "sft", "name": "first", "policy": {"model": "base"}, "examples": {"kind": "list", "items": rows},
        "trainer": {"kind": "sft", "learning_rate": 1e-3, "batch_size": 8},
    }  # fmt: skip
    (world / "first.yaml").write_text(yaml.safe_dump(first))
    (world / "both.yaml").write_text(yaml.safe_dump({**recipe, "name": "both", "policy": {"recipe": "first.yaml"}}))
    raft.run("both.yaml", quiet=True, launch={"kind": "ray", "address": "local", "workers": 2, "env": as_many()})
    for made in ("first/policy", "both/iterations/001/policy"):
        stamp = json.loads((world / "outputs" / f"{made}.stamp.json").read_text())
        assert len(stamp["workers"]) == 2 and not died(world / "outputs" / "both")
    known = dict(line.split() for line in (world / "priorities").read_text().splitlines())
    assert str(os.getpid()) not in known and set(known.values()) == {str(os.getpriority(os.PRIO_PROCESS, 0))}


@pytest.mark.faults
@pytest.mark.engine
def test_whatever_is_killed_at_random_the_same_command_ends_with_the_same_bytes(tmp_path):
    """Workers, Ray's own process on the node, and the process that drives, in all stages; KILLS times in all."""
    wanted, chance = int(os.environ.get("KILLS", "30")), random.Random(7)
    command = ["run", "recipe.yaml", "launch.kind=ray", "launch.address=local", "launch.workers=2"]
    for name in ("undisturbed", "killed"):
        reward_models.save(tmp_path / name / "scorer", "LlamaForSequenceClassification", **reward_models.SIZE)
        make_recipe(tmp_path / name, reward=SCORER)
    done = worlds.raft(tmp_path / "undisturbed", *command)
    assert done.returncode == 0, done.stderr
    kills: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    run = tmp_path / "killed" / "outputs" / "tiny"
    while kills.total() < wanted:
        process = worlds.Command(tmp_path / "killed", *command)
        while process.poll() is None and kills.total() < wanted:
            stage = after(process, run, chance.randint(1, 5))
            time.sleep(0.5 * chance.random())
            kind = chance.choice(["worker", "worker", "worker", "raylet", "driver"])
            found = [pid for pid in processes.family(process.pid) if victim(pid) == kind]
            if stage is None or not (found := [process.pid] if kind == "driver" else found):
                continue
            with suppress(ProcessLookupError):
                os.kill(chance.choice(found), signal.SIGKILL)
            kills[kind] += 1
            stages[stage] += 1
            if kind != "worker":
                until_its_end(process)
        if (run / "iterations" / "002" / "metrics.json.stamp.json").exists():
            until_its_end(process)
            assert fingerprint(run) == fingerprint(tmp_path / "undisturbed" / "outputs" / "tiny")
            shutil.rmtree(run)
    process.kill()
    process.wait()
    done = worlds.raft(tmp_path / "killed", *command)
    assert done.returncode == 0, done.stderr
    assert fingerprint(run) == fingerprint(tmp_path / "undisturbed" / "outputs" / "tiny")
    print(f"killed: {dict(kills)}, while they made {dict(stages)}")


def until_its_end(process: worlds.Command) -> None:
    began = time.monotonic()
    while process.poll() is None:
        assert time.monotonic() - began < 180, "the run does not end"
        time.sleep(0.05)


def after(process: worlds.Command, run: Path, changes: int) -> str | None:
    """What is made once the run has turned to something else so many times; None if it ended before."""
    seen, began = None, time.monotonic()
    while process.poll() is None:
        assert time.monotonic() - began < 180, "the run does not get on"
        now = progress.read(run / "progress.json")
        if now is not None and now.artifact != seen:
            seen, changes = now.artifact, changes - 1
            if changes < 0:
                return seen
        time.sleep(0.01)
    return None


def victim(pid: int) -> str | None:
    """What of Ray a process is: a worker, or the process of its node."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    return "worker" if command.startswith(b"ray::Worker") else "raylet" if b"raylet/raylet" in command else None


def test_scores_of_a_block_that_are_there_at_once_are_handed_over_together():
    def slow() -> Iterator[int]:
        for number in range(6):
            time.sleep(0.05 * (number in (0, 4)))
            yield number

    assert list(worker._at_once(slow())) == [[0], [1, 2, 3, 4], [5]]
    assert list(worker._at_once(iter([]))) == []


def test_what_libraries_say_in_a_worker_is_handed_over_once():
    with logs.kept():
        with warnings.catch_warnings():  # which puts back what it shows, unknown to logging
            logging.captureWarnings(True)
        one = Worker([], None)
        one.said()
        logging.getLogger("a.library").warning("%d things", 3)
        warnings.warn("beware", UserWarning, stacklevel=1)
        (library, (level, text)), none = one.said(), one.said()
    assert library == (logging.WARNING, "a.library: 3 things") and not none
    assert level == logging.WARNING and text.startswith("py.warnings: ") and "UserWarning: beware" in text


def test_what_a_worker_died_with_is_handed_out_first_and_a_suspect_alone():
    blocks = [Block([n], [str(n)]) for n in range(4)]
    work = Work(b"", None, 0, blocks)
    one, two = work.take(), work.take()
    one.deaths, two.deaths = 2, 1
    work.put_back([one, two])
    assert [work.suspect(3), work.take()] == [False, two]
    assert [work.suspect(3), work.take()] == [True, one]
    assert [work.left(), work.take(), work.take(), work.waits()] == [2, blocks[2], blocks[3], False]


def test_what_came_back_before_a_worker_died_does_not_count_twice():
    blocks = [Block([0, 1], ["b"])]  # "a" had come back
    assert [_check_off(blocks, name) for name in "aba"] == [False, True, False]
    assert not blocks


def test_an_engine_over_more_gpus_than_a_worker_has_is_refused(tmp_path, monkeypatch):
    make_recipe(
        tmp_path, generator={"kind": "vllm", "k": 2, "max_tokens": 8, "engine_args": {"tensor_parallel_size": 2}}
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"launch\.gpus_per_worker: 1, but .*tensor_parallel_size splits .* over 2"):
        recipes.load(Path("recipe.yaml"), ["launch.kind=ray"])
    recipes.load(Path("recipe.yaml"), ["launch.kind=ray", "launch.gpus_per_worker=2"])


def test_an_address_of_the_client_is_refused():
    assert [key for key, _ in Ray(address="ray://head:10001").faults()] == ["address"]
