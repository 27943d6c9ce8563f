"""The memory plan of raft check: its turns, and what it says of them."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import worlds
from reward_models import SIZE
from reward_models import save as save_model
from safetensors.torch import load_file

from raft.cli import memory_plan
from raft.cli.main import execute, parse
from raft.cli.memory_plan import Device, Turn, idle, lines, plan
from raft.config.recipe import Loaded, load
from raft.launch import vllm_options
from raft.launch.ray import Ray
from raft.models import model_sizes

GPU = Device("cuda", 80 * 10**9)
HOST = Device("cpu", 32 * 10**9)


def test_the_share_of_a_gpu_is_that_of_the_installed_vllm():
    (folder,) = find_spec("vllm").submodule_search_locations  # type: ignore[union-attr, misc]
    said = re.search(
        r"gpu_memory_utilization: float = Field\(default=([\d.]+)", Path(folder, "config/cache.py").read_text()
    )
    assert said and float(said[1]) == memory_plan.UTILIZATION


def a_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Any:
    """The little world with vLLM and a reward model, loaded from its folder."""
    save_model(folder / "judge", "LlamaForSequenceClassification", **SIZE)
    reward = {"kind": "model", "model": "judge", "template": "plain", "max_length": 128}
    generator = {"kind": "vllm", "k": 4, "max_tokens": 12}
    file = worlds.make_recipe(folder, **{"reward": reward, "generator": generator, **changes})
    monkeypatch.chdir(folder)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    return load(file)


def by_name(turns: list[Turn]) -> dict[str, Turn]:
    return {turn.name: turn for turn in turns}


def test_on_a_gpu_the_engine_takes_its_share_and_others_what_they_need(tmp_path: Path, monkeypatch):
    turns = by_name(plan(a_recipe(tmp_path, monkeypatch), GPU))
    policy, judge = model_sizes.read(tmp_path / "base").parameters(), model_sizes.read(tmp_path / "judge").parameters()
    assert list(turns) == ["generate", "score", "likelihoods", "train"]
    assert turns["generate"].total == int(0.92 * 80e9)
    text = 2 * 2 * 2 * 32 * 2 * 256  # key and value, layers, heads, width, bytes, tokens: of the little world's policy
    assert turns["generate"].total - turns["generate"].spare == 2 * policy + text
    assert f"room for {(int(0.92 * 80e9) - 2 * policy) // text:,} texts of 256 tokens" in [*turns["generate"].terms][1]
    assert [*turns["score"].terms.values()] == [2 * judge, 16384 * 2 * (4 * 32 + 3 * 48)]
    vocabulary = 12 * 8192 * 300
    assert [*turns["likelihoods"].terms.values()] == [4 * policy, vocabulary]
    layer = 16 * 64 + 2 * (7 * 64 + 4 * 128)
    assert [*turns["train"].terms.values()] == [16 * policy, 2 * policy, 8192 * 2 * layer, vocabulary]


@dataclass(frozen=True)
class Eight(Ray):
    """A cluster of eight devices, which is not there."""

    def ranks(self) -> int:
        return 8


def on_eight(loaded: Loaded, **options) -> Loaded:
    return replace(loaded, recipe=replace(loaded.recipe, launch=Eight(**options)))


def test_sharded_weights_are_divided_by_the_ranks_and_shard_auto_shards_what_does_not_fit(tmp_path: Path, monkeypatch):
    loaded = a_recipe(tmp_path, monkeypatch)
    model = model_sizes.read(tmp_path / "base")
    tight = Device("cuda", int(16 * model.parameters() / 0.75) - 1)
    roomy = Device("cuda", int(16 * model.parameters() / 0.75) + 1)
    for options, where, divided in (
        ({}, tight, True), ({}, roomy, False), ({"shard": "none"}, tight, False), ({"shard": "fsdp"}, roomy, True),
        ({"shard": "fsdp"}, HOST, True), ({}, HOST, False),
    ):  # fmt: skip
        terms = [*by_name(plan(on_eight(loaded, **options), where))["train"].terms.values()]
        assert terms[0] == (2 * model.parameters() if divided else 16 * model.parameters())


def test_a_rank_puts_together_two_layers_and_what_is_in_none():
    shapes = {"embed.weight": [300, 32], "norm.weight": [32]}
    shapes |= {f"model.layers.{layer}.mlp.weight": [32, 10 * (layer + 1)] for layer in range(4)}
    assert model_sizes.Model({}, shapes).together() == 300 * 32 + 32 + 32 * 40 + 32 * 30


def test_a_policy_that_is_split_takes_a_share_of_each_gpu(tmp_path: Path, monkeypatch):
    split = {"kind": "vllm", "k": 4, "max_tokens": 12, "engine_args": {"tensor_parallel_size": 2}}
    turn = by_name(plan(a_recipe(tmp_path, monkeypatch, generator=split), GPU))["generate"]
    policy = model_sizes.read(tmp_path / "base").parameters()
    assert next(iter(turn.terms.values())) == 2 * policy / 2
    assert turn.total - turn.spare == 2 * policy / 2 + 2 * 2 * 2 * 32 * 2 * 256 / 2


def test_what_one_gpu_does_not_hold_is_spread_over_the_gpus_of_a_worker_to_score(tmp_path: Path, monkeypatch):
    loaded = a_recipe(tmp_path, monkeypatch)

    def weights(where: Device, launch: Any = None) -> list[int | None]:
        recipe = replace(loaded.recipe, launch=launch or loaded.recipe.launch)
        recipe.launch.assume(8)  # no cluster is joined
        turns = by_name(plan(replace(loaded, recipe=recipe), where))
        return [next(iter(turns[name].terms.values())) for name in ("score", "likelihoods")]

    scorer, policy = weights(GPU)
    assert scorer and policy and weights(replace(GPU, count=4)) == [scorer, policy]
    small = Device("cuda", int(min(scorer, policy) / memory_plan.FILLED) - 8, count=4)
    assert weights(small) == [-(-scorer // 8) * 2, -(-policy // 16) * 4]
    two = Ray(gpus_per_worker=2)
    assert weights(small, launch=two) == [-(-scorer // 4) * 2, -(-policy // 8) * 4]
    host = Device("cpu", small.memory, count=1)
    assert weights(host, launch=two) == [2 * scorer, policy]
    said = lines(plan(loaded, small), small)
    assert any("(launch.kind: ray, launch.gpus_per_worker)" in one for one in said)


def test_check_warns_of_workers_that_have_nothing_to_train(tmp_path: Path, monkeypatch):
    loaded = a_recipe(tmp_path, monkeypatch)
    trainer = replace(loaded.recipe.trainer, batch_size=16, max_length=64, max_tokens_per_microbatch=512)
    few = replace(loaded.recipe, trainer=trainer, launch=Eight())
    (line,) = idle(few, GPU)
    # 16 x 64 tokens fill two passes of 512
    assert line.startswith("a step fills only 2 of 8 GPUs (16 examples of up to 64 tokens in passes of 512); raise")
    assert not [*idle(replace(few, trainer=replace(trainer, max_tokens_per_microbatch=128)), GPU)]
    assert not [*idle(loaded.recipe, GPU)]


def test_options_of_the_recipe_are_in_the_plan(tmp_path: Path, monkeypatch):
    trainer = {
        "max_tokens_per_microbatch": 100,
        "gradient_checkpointing": True,
        "lora": {"r": 4},
        "mixed_precision": "float32",
    }
    generator = {"kind": "vllm", "max_tokens": 12, "max_model_len": 128, "dtype": "float32"}
    generator["engine_args"] = {"gpu_memory_utilization": 0.5}
    evaluation = {
        "kl": False,
        "gold": {"kind": "model", "model": "judge", "dtype": "float32", "max_tokens_per_batch": 4096},
    }
    loaded = a_recipe(tmp_path, monkeypatch, trainer=trainer, evaluation=evaluation, generator=generator)
    turns, policy = by_name(plan(loaded, GPU)), model_sizes.read(tmp_path / "base")
    assert list(turns) == ["generate", "score", "score gold", "train"]
    assert (
        turns["generate"].total == int(0.5 * 80e9)
        and "texts of 128 tokens x 1,024 bytes" in [*turns["generate"].terms][1]
    )
    assert [*turns["score gold"].terms.values()][1] == 4096 * 4 * (4 * 32 + 3 * 48)
    layer = 16 * 64 + 4 * (7 * 64 + 4 * 128)
    assert [*turns["train"].terms.values()] == [
        4 * policy.parameters(), 16 * 2 * 2 * 4 * (64 + 64), 100 * (2 * 4 * 64 + layer), 100 * 12 * 300,
    ]  # fmt: skip
    assert turns["train"].lower == "lower trainer.max_tokens_per_microbatch"


def test_where_weights_alone_do_not_fit_no_smaller_batch_is_advised_but_what_holds_them():
    """7B in LoRA: 30.5 GB of weights and 1.2 of adapters, which 24 GB less 3 do not hold, nor 8 of 24; 48 GB do."""
    turn = Turn("train", {"weights": 30.5e9, "LoRA": 1.2e9, "logits": 4e9}, lower="lower a", fixed=int(31.7e9))
    *_, said = lines([turn], memory_plan.card(1, 24))
    assert said.endswith("; 31.7 of it are weights and their state: use a GPU of 48 GB")
    *_, said = lines([replace(turn, instead="use trainer.lora")], memory_plan.card(1, 24))
    assert said.endswith(": use trainer.lora, or use a GPU of 48 GB")
    *_, said = lines([replace(turn, terms={"weights": 200e9}, fixed=200 * 10**9)], memory_plan.card(1, 141))
    assert said.endswith("200.0 of it are weights and their state: split them")
    *_, said = lines([replace(turn, fixed=20 * 10**9)], memory_plan.card(1, 24))
    assert said.endswith("; lower a")


def test_members_stand_side_by_side_but_where_they_unload(tmp_path: Path, monkeypatch):
    member = {"kind": "model", "model": "judge", "template": "plain"}
    members = {"one": member, "other": {**member, "dtype": "float32"}, "rule": {"kind": "rule", "function": "length"}}
    found = {}
    for unload in (False, True):
        reward = {"kind": "ensemble", "members": members, "offload": unload}
        found[unload] = by_name(plan(a_recipe(tmp_path, monkeypatch, reward=reward), GPU))["score"]
    assert len(found[False].terms) == 4 and found[False].total == pytest.approx(1.5 * found[True].total)
    assert (
        "reward.offload: true" in found[False].lower
        and "reward.members.other.max_tokens_per_batch" in found[True].lower
    )


def test_on_a_cpu_all_but_what_ends_stands_side_by_side(tmp_path: Path, monkeypatch):
    loaded = a_recipe(tmp_path, monkeypatch)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    turns = by_name(plan(loaded, HOST))
    assert [*turns["generate"].terms.values()][1] == 3 * 2**30
    longer = max(turns["likelihoods"], turns["train"], key=lambda turn: turn.total)
    together = turns["generate"].total + turns["score"].total + longer.total
    *_, said = lines([*turns.values()], HOST)
    assert said == f"    fits: at most {together / 1e9:.3g} of 32.0 at once (generate + score + {longer.name})"
    *_, said = lines([*turns.values()], Device("cpu", together - 1))
    assert said.startswith("    does not fit: ") and said.endswith("; set VLLM_CPU_KVCACHE_SPACE, or a shorter context")
    policy, scorer = model_sizes.read(tmp_path / "base").parameters(), model_sizes.read(tmp_path / "judge")
    scored = scorer.parameters(output=False)
    assert longer.name == "train"
    weights = 4 * policy + 4 * scored + 16 * policy  # of the engine, of the reward model, and trained by AdamW
    for memory, said in ((weights, False), (weights - 1, True)):
        last = [*lines([*turns.values()], Device("cpu", memory))][-1]
        assert ("of it are weights and their state: use a GPU" in last) == said


def test_a_turn_that_does_not_fit_a_gpu_is_named_with_the_keys_to_lower():
    turns = [
        Turn("score", {"weights": 30 * 10**9}, lower="lower a"),
        Turn("train", {"all": 81 * 10**9}, lower="lower b"),
    ]
    left = "of which 3 are left to CUDA and the sleeping engine"
    assert [*lines(turns, GPU)][-1] == f"    does not fit: train, 81.0 of 80.0, {left}; lower b"
    assert [*lines(turns, Device("cuda", 10**10))][-2:] == [
        f"    does not fit: score, 30.0 of 10.0, {left}; lower a",
        f"    does not fit: train, 81.0 of 10.0, {left}; lower b",
    ]


def test_the_widest_sets_that_would_fit_side_by_side_are_named():
    gb = 10**9
    turns = [
        Turn("generate", {"weights": 10 * gb, "cache": 60 * gb}, spare=59 * gb), Turn("score", {"weights": 16 * gb}),
        Turn("train", {"all": 60 * gb}),
    ]  # fmt: skip
    fits, together = [*lines(turns, GPU)][-2:]
    assert fits == "    fits: the largest turn is generate, 70.0 of 80.0"
    assert (
        "together, with room for one text in the cache: generate + score; generate + train; score + train;" in together
    )
    assert "in the cache: generate + score + train;" in [*lines(turns, Device("cuda", 90 * gb))][-1]
    assert "together" not in [*lines(turns, Device("cuda", 23 * gb))][-1]


def test_a_cache_too_small_for_one_text_is_named(tmp_path: Path, monkeypatch):
    turns = plan(a_recipe(tmp_path, monkeypatch), Device("cuda", 10**5))
    said = [*lines(turns, Device("cuda", 10**5))]
    assert any(
        "the cache of generate does not hold one text; set generator.engine_args.gpu_memory_utilization" in one
        for one in said
    )


def test_what_is_not_here_yet_is_said_with_its_reason_and_the_rest_is_shown(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    needed = (
        "job: sft\nname: needed\npolicy: {config: {model_type: llama}}\n"
        "examples: {kind: list, items: [{prompt: a, response: b}]}\n"
        "trainer: {kind: sft}\n"
    )
    (tmp_path / "needed.yaml").write_text(needed)
    a_recipe(tmp_path, monkeypatch)
    file = tmp_path / "recipe.yaml"
    file.write_text(file.read_text().replace("  model: base", "  recipe: needed.yaml"))
    loaded = load(Path("recipe.yaml"))
    said = [*lines(plan(loaded, GPU), GPU)]
    assert said[-2] == (
        "    not known yet for generate, likelihoods, train: the run of needed.yaml makes the model, from policy.config"
    )
    assert said[1].startswith("    score: ")
    (turn,) = plan(loaded.needs[0], GPU)
    assert not turn.terms and turn.note == "the run of needed.yaml makes the model, from policy.config"
    (tmp_path / "needed.yaml").write_text(needed.replace("{config: {model_type: llama}}", "{model: base}"))
    like_its_start = plan(load(Path("recipe.yaml")), GPU)
    assert like_its_start == plan(load(Path("recipe.yaml"), ["policy.recipe=null", "policy.model=base"]), GPU)
    hub = a_recipe(tmp_path, monkeypatch, policy={"model": "owner/name"})
    assert by_name(plan(hub, GPU))["train"].note.startswith("owner/name is not downloaded yet, and the hub did not")
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(tmp_path / "base")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
    assert by_name(plan(hub, GPU))["train"].total == by_name(plan(a_recipe(tmp_path, monkeypatch), GPU))["train"].total


def test_old_weights_and_kinds_of_your_own_are_not_known(tmp_path: Path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Mine:\n    def score(self, groups): ...\n"
    )
    loaded = a_recipe(tmp_path, monkeypatch, reward={"kind": "mine:Mine"})
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "pytorch_model.bin")
    turns = by_name(plan(loaded, GPU))
    assert turns["score"].note == "reward.kind is one of your own"
    assert "the sizes of old weights are known only when they are read" in turns["train"].note


def test_options_that_make_no_sense_are_no_traceback(tmp_path: Path, monkeypatch):
    generator = {"kind": "vllm", "max_tokens": 12, "engine_args": {"gpu_memory_utilization": "most"}}
    loaded = a_recipe(tmp_path, monkeypatch, generator=generator, trainer={"lora": {"r": "many"}})
    turns = by_name(plan(loaded, GPU))
    assert (
        "does not fit this estimate" in turns["generate"].note and "does not fit this estimate" in turns["train"].note
    )
    assert turns["score"].terms


def test_terms_that_config_json_does_not_tell_are_said_to_be_not_known(tmp_path: Path, monkeypatch):
    loaded = a_recipe(tmp_path, monkeypatch)
    config = tmp_path / "base" / "config.json"
    config.write_text(config.read_text().replace("num_hidden_layers", "depth"))
    said = "\n".join(lines(plan(loaded, GPU), GPU))
    for words in ("cache (texts not known)", "      ? activations (not known)", "weights, gradients and AdamW ("):
        assert words in said


def test_jobs_that_train_alone_have_that_turn_alone_and_pairs_need_no_logits(tmp_path: Path, monkeypatch):
    save_model(tmp_path / "base", "LlamaForCausalLM", **SIZE)
    rows = "examples: {kind: list, pairs: columns, items: [{prompt: a, chosen: b, rejected: c}]}"
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(
        f"job: reward-model\nname: r\npolicy: {{model: base}}\n{rows}\n"
        "trainer: {kind: reward-model, max_length: 64}\n"
    )
    (turn,) = plan(load(Path("r.yaml")), HOST)
    policy = sum(
        tensor.numel() for name, tensor in load_file("base/model.safetensors").items() if "lm_head" not in name
    )
    assert turn.name == "train" and [*turn.terms.values()] == [
        16 * policy,
        2048 * 2 * (16 * 32 + 4 * (7 * 32 + 4 * 48)),
    ]


def test_the_gpu_is_asked_for_its_memory_unless_torch_cannot_use_it(tmp_path: Path, monkeypatch):
    driver = tmp_path / "nvidia-smi"
    driver.write_text('#!/bin/sh\necho "$@" > "$0.asked"\necho "${SAID:-81559, Disabled}"\n')
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    host = Device("cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if version("torch").endswith("+cpu"):
        assert memory_plan.device() == host
    monkeypatch.setattr(memory_plan, "version", lambda name: "2.13.0")
    assert memory_plan.device() == Device("cuda", 81559 * 2**20, count=2)
    asked = (tmp_path / "nvidia-smi.asked").read_text()
    assert asked == "--id=3 --query-gpu=memory.total,mig.mode.current --format=csv,noheader,nounits\n"
    monkeypatch.setenv("SAID", "24564, [N/A]")
    assert memory_plan.device() == Device("cuda", 24564 * 2**20, count=2)
    for unreadable in ("[Insufficient Permissions], [N/A]", "81559, Enabled"):
        monkeypatch.setenv("SAID", unreadable)  # torch is asked then, and finds none here
        found = memory_plan.device()
        assert found.kind == "cpu" and "can say how much memory" in found.note
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert memory_plan.device() == host


def test_check_prints_the_plan(tmp_path: Path, monkeypatch):
    a_recipe(tmp_path, monkeypatch)
    done = worlds.raft(tmp_path, "check", "recipe.yaml")
    assert done.returncode == 0, done.stderr
    policy = model_sizes.read(tmp_path / "base").parameters()
    first, head, *said = done.stdout.splitlines()
    assert first == "recipe.yaml: no fault found (job: align, run: outputs/tiny)"
    assert head.startswith("  estimated memory per stage, in GB (1e9 bytes), of which ")
    turns = [one.split(":")[0].strip() for one in said if not one.startswith("      ")]
    assert turns[:4] == ["generate", "score", "likelihoods", "train"]
    if memory_plan.device().kind == "cpu":
        assert f"{4 * policy / 1e6:.3g} MB weights ({policy:,} parameters x 4 bytes)" in map(str.strip, said)
        assert f"{16 * policy / 1e6:.3g} MB weights, gradients and AdamW ({policy:,} parameters x 16 bytes)" in map(
            str.strip, said
        )
        assert turns[4:] == ["fits"] and " at once (generate + score + " in said[-1]


def test_check_says_whether_it_fits_gpus_that_are_not_here_without_the_weights(tmp_path: Path, monkeypatch, capsys):
    a_recipe(tmp_path, monkeypatch, launch={"kind": "ray", "gpus_per_worker": 2, "shard": "fsdp"})
    policy = model_sizes.read(tmp_path / "base").parameters()
    (tmp_path / "base" / "model.safetensors").unlink()
    assert execute(parse(["check", "recipe.yaml", "--gpu", "8x80"])) == 0
    first, head, *said = capsys.readouterr().out.splitlines()
    assert first == "recipe.yaml on 8 GPUs of 80 GB" and head.endswith("of which the GPU has 85.5:")
    shard = f"weights, gradients and AdamW ({policy:,} parameters x 16 bytes / 8 ranks)"
    assert any(one.endswith(f" {shard}") for one in said)
    assert "    fits: the largest turn is generate, 78.7 of 85.5" in said
    for wrong in ("80GB", "0", "x80", "8x", "-1"):
        with pytest.raises(SystemExit):
            parse(["check", "recipe.yaml", f"--gpu={wrong}"])


def test_several_gpus_of_a_run_without_ray_are_said_to_be_idle_and_ray_is_named_where_one_is_too_small(
    tmp_path: Path, monkeypatch, capsys
):
    words = "warning: launch.kind: local uses one of the 8 GPUs"
    loaded = a_recipe(tmp_path, monkeypatch)
    for gpus, kind, said in (("8x80", "local", True), ("80", "local", False), ("8x80", "ray", False)):
        assert execute(parse(["check", "recipe.yaml", "--gpu", gpus, f"launch.kind={kind}"])) == 0
        assert (words in capsys.readouterr().out) == said
    way = "set launch.kind=ray, which shards it over 8 GPUs, or use trainer.lora"
    for count, said in ((8, True), (1, False)):
        turn = by_name(plan(loaded, memory_plan.card(count, 80)))["train"]
        assert (way in turn.advice(0)) == said
        assert ("shard it over several GPUs with launch.kind=ray" in turn.advice(0)) == (not said)
    adapter = replace(loaded, recipe=replace(loaded.recipe, trainer=replace(loaded.recipe.trainer, lora={"r": 4})))
    assert "launch.kind" not in by_name(plan(adapter, memory_plan.card(8, 80)))["train"].advice(0)


def test_where_gpus_do_not_hold_a_recipe_the_status_says_so_and_the_message_how_many_would(
    tmp_path: Path, monkeypatch, capsys
):
    a_recipe(tmp_path, monkeypatch, reward={"kind": "rule", "function": "length"}, trainer={"kind": "sft"})
    llama = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
    }  # fmt: skip
    shutil.copytree(tmp_path / "base", tmp_path / "llama", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "llama" / "config.json").write_text(json.dumps(llama))
    # In GB, of which 82.5 are free: 107.8 of state are split; each GPU has 5.3 of gathered layers, 13.5 of copies in
    # bfloat16, 55.3 of activations and 3.2 of logits, 77.3 together: 107.8 / 20 is too much, 107.8 / 21 is not. With
    # checkpointing there are no copies and 6.0 of activations, so half of the state fits.
    split, lighter = "launch.kind=ray", "trainer.gradient_checkpointing=true"
    assert execute(parse(["check", "recipe.yaml", "policy.model=llama", "--gpu", "80"])) == 2
    assert capsys.readouterr().err.endswith(
        "raft: recipe.yaml does not fit a GPU of 80 GB; these would be enough: 21 with launch.kind=ray, or 2 with "
        "launch.kind=ray trainer.gradient_checkpointing=true\n"
    )
    for gpus, overrides, status in (
        ("20x80", [split], 2), ("21x80", [split], 0), ("80", [split, lighter], 2), ("2x80", [split, lighter], 0),
    ):  # fmt: skip
        assert execute(parse(["check", "recipe.yaml", "policy.model=llama", "--gpu", gpus, *overrides])) == status, (
            gpus,
            overrides,
        )
    assert (
        execute(parse(["check", "recipe.yaml", "policy.model=llama", "--gpu", "48"])) == 2
    )  # 14.5 + 107.8 / 4 of 48.5
    only = "recipe.yaml does not fit a GPU of 48 GB; these would be enough: 4 with launch.kind=ray trainer.gradient"
    assert only in capsys.readouterr().err
    assert execute(parse(["check", "recipe.yaml", "policy.model=llama", "--gpu", "1"])) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "raft: recipe.yaml does not fit a GPU of 1 GB"


def test_what_lacks_memory_is_too_large_or_has_no_room_for_one_text_and_what_is_unknown_is_neither():
    gb = 10**9
    assert memory_plan.lacks(Turn("train", {"all": 78 * gb}), 80 * gb)
    assert not memory_plan.lacks(Turn("train", {"all": 77 * gb}), 80 * gb)  # 3 are kept
    assert memory_plan.lacks(Turn("generate", {"weights": 70 * gb}, spare=-1, shares=True), 80 * gb)
    assert not memory_plan.lacks(Turn("score", {}, "it is not here"), 80 * gb)
    assert "fits" not in " ".join(lines([Turn("generate", {"weights": 70 * gb}, spare=-1, shares=True)], GPU))


def test_a_card_has_what_it_reports_and_others_what_their_name_says():
    assert memory_plan.card(1, 80) == Device("cuda", 85_500_000_000)
    assert memory_plan.card(4, 40) == Device("cuda", 40 * 2**30, count=4)


def test_the_check_of_a_recipe_with_models_imports_no_torch(tmp_path: Path, monkeypatch):
    a_recipe(tmp_path, monkeypatch, trainer={"lora": {"r": 4}})
    script = (
        "import sys\nfrom raft.cli.main import main\nmain(['check', 'recipe.yaml'])\n"
        "heavy = [name for name in ('torch', 'transformers', 'vllm', 'datasets', 'peft') if name in sys.modules]\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "train: " in done.stdout, done.stderr


def test_the_limit_of_a_container_is_the_memory_that_there_is(tmp_path):
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert vllm_options.host_memory(tmp_path) == whole
    (tmp_path / "memory.max").write_text("max\n")
    assert vllm_options.host_memory(tmp_path) == whole
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    assert vllm_options.host_memory(tmp_path) == 2**30
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{2**29}\n")
    assert vllm_options.host_memory(tmp_path) == 2**29


def test_where_the_sizes_of_a_model_are_not_known_no_status_says_that_it_fits(tmp_path: Path, monkeypatch, capsys):
    a_recipe(tmp_path, monkeypatch)
    assert execute(parse(["check", "recipe.yaml", "--gpu", "80", "policy.model=nobody/absent"])) == 2
    told = capsys.readouterr()
    assert "not known yet for generate, likelihoods, train: " in told.out and "nobody/absent" in told.out
    assert "    what is known fits: the largest turn is score, " in told.out
    assert told.err.endswith(
        "raft: whether recipe.yaml fits a GPU of 80 GB is not known: see generate, likelihoods, train above\n"
    )
