"""The laws of a reward model behind a url: its rewards are those of the same model in memory."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from reward_models import SIZE, edit, groups, rewards, save
from reward_server import RewardServer

from raft.cli import memory_plan
from raft.config import preflight, recipe
from raft.core import protocols
from raft.core.errors import UserError
from raft.core.records import Group, Prompt, Response
from raft.core.registry import build
from raft.launch import vllm_server
from raft.rewards import doctor
from raft.rewards.model import RewardModel
from raft.store.keys import describe

LLAMA = {"num_key_value_heads": 2, "max_position_embeddings": 256, **SIZE}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save(folder, "LlamaForSequenceClassification", **LLAMA)
    return folder


@pytest.fixture(scope="module")
def without_weights(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What raft needs of a model that is served elsewhere."""
    folder = tmp_path_factory.mktemp("described")
    for file in llama.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    return folder


@pytest.fixture
def serve():
    running = []

    def start(folder: Path, **options: Any) -> RewardServer:
        running.append(RewardServer(folder, **options))
        return running[-1]

    yield start
    for server in running:
        server.stop()


def served(folder: Path, *servers: RewardServer, **options: Any) -> RewardModel:
    urls = [server.url for server in servers]
    where = {"url": urls[0] if len(urls) == 1 else urls, "served_model_name": "tiny", "max_retries": 0}
    return RewardModel(model=str(folder), **{**where, **options})


def many(count: int) -> list[Group]:
    """Groups whose conversations all differ."""
    return [
        Group(
            Prompt(f"p{n}", messages=[{"role": "user", "content": f"How are you, {n}?"}]),
            [Response(text, [], None, "stop") for text in ("Hi.", "Bye.")],
        )
        for n in range(count)
    ]


def test_rewards_are_those_of_the_model_in_memory_and_its_weights_are_not_needed_here(llama, without_weights, serve):
    far = served(without_weights, serve(llama))
    assert rewards(far, groups()) == pytest.approx(rewards(RewardModel(model=str(llama)), groups()), abs=1e-5)


@pytest.mark.parametrize("read", ["auto", "logit", "probability"])
def test_outputs_of_classes_are_read_as_in_memory(tmp_path, serve, read):
    names = {0: "bad", 1: "good", 2: "odd"}
    save(tmp_path, "LlamaForSequenceClassification", **LLAMA, num_labels=3, id2label=names)
    options = {"label": "good", "read": read}
    near = [score for row in RewardModel(model=str(tmp_path), **options).score(groups()) for score in row]
    far = [score for row in served(tmp_path, serve(tmp_path), **options).score(groups()) for score in row]
    for one, other in zip(near, far, strict=True):
        assert one.reward == pytest.approx(other.reward, abs=1e-5)
        assert one.parts == pytest.approx(other.parts, abs=1e-5) and one.parts.keys() == {"bad", "good", "odd"}


def test_the_server_is_sent_raft_s_own_tokens_each_conversation_once_and_asked_for_raw_outputs(llama, serve):
    server = serve(llama)
    reward, given = served(llama, server), groups()
    assert len(rewards(reward, given)) == 10
    wanted = {ids for group in given for ids, _ in reward.encode_all(group.prompt, [r.text for r in group.responses])}
    assert {tuple(row) for row in server.scored} == wanted
    assert [len(asked["input"]) for asked in server.requests] == [2, 2, 5, 5]  # two texts of the doctor, then groups
    assert sorted(asked["use_activation"] for asked in server.requests) == [False, False, False, True]
    asked = server.requests[0]
    assert [tuple(row) for row in asked["input"]] == [
        reward.encode(doctor.asked("chat", 0)[0], answer)[0] for answer in doctor.asked("chat", 0)[1:]
    ]


def test_a_server_that_gives_probabilities_where_raw_outputs_were_asked_for_is_refused(llama, serve):
    with pytest.raises(UserError, match=r"gives probabilities \(\[\[0\.\d+\], \[0\.\d+\]\]\) where raw outputs"):
        rewards(served(llama, serve(llama, deaf=True)), groups())


def test_a_regression_between_0_and_1_is_no_probability(tmp_path, serve):
    """vLLM has no activation for it, so raw and activated outputs are the same."""
    save(tmp_path, "LlamaForSequenceClassification", **LLAMA, problem_type="regression")
    far = served(tmp_path, serve(tmp_path, deaf=True))
    near = [1 / (1 + math.exp(-one)) for one in rewards(RewardModel(model=str(tmp_path)), groups())]
    assert rewards(far, groups()) == pytest.approx(near, abs=1e-5)


def test_what_is_not_finite_is_no_reward_of_that_response_and_stops_a_run_at_the_probe(llama, serve):
    server = serve(llama)
    reward = served(llama, server)
    assert rewards(reward, groups())
    server.change = lambda outputs: torch.where(torch.arange(len(outputs))[:, None] == 0, math.nan, outputs)
    (scores, _) = reward.score(groups())
    assert [score.error for score in scores if score.reward is None] == [
        "the reward model gave nan as reward, not a finite number"
    ]
    with pytest.raises(UserError, match="outputs that are not finite for a plain question"):
        rewards(served(llama, server), groups())


@pytest.mark.parametrize("context", [256, 40])
def test_a_conversation_that_the_server_cannot_read_is_not_sent(llama, serve, context):
    server = serve(llama, context=context)
    reward = served(llama, server, max_length=1000)
    (scores, _) = reward.score(groups(["Hi.", "x" * 300]))
    assert scores[0].error is None and scores[0].reward is not None
    assert scores[1].reward is None and f"more than the {context} that the reward model reads" in scores[1].error
    assert max(len(row) for asked in server.requests for row in asked["input"]) <= context


def test_a_server_that_reads_fewer_tokens_than_it_is_sent_is_refused(llama, serve):
    server = serve(llama)
    server.cut = 1
    with pytest.raises(UserError, match=r"of \d+ tokens that were sent \d+ were read"):
        rewards(served(llama, server), groups())


def test_a_server_with_another_number_of_outputs_or_another_name_or_task_is_refused(llama, serve, tmp_path):
    save(tmp_path, "LlamaForSequenceClassification", **{**LLAMA, "num_labels": 3})
    with pytest.raises(UserError, match=r"3 outputs of a text, and .* has 1 by its config\.json"):
        rewards(served(llama, serve(tmp_path)), groups())
    with pytest.raises(UserError, match=r"reward\.served_model_name: .* has no model 'tinny'; did you mean tiny"):
        rewards(served(llama, serve(llama), served_model_name="tinny"), groups())
    server = serve(llama)
    with pytest.raises(UserError, match=r"(?s)status 404.*vllm serve MODEL --runner pooling"):
        rewards(served(llama, server, url=server.url.replace("/v1", "/far/v1")), groups())


@pytest.mark.parametrize(
    "architecture, head",
    [("INFORMForSequenceClassification", "mlp"), ("LlamaForRewardModelWithGating", "quantile or objectives"),
     ("LlamaRewardModel", "regression"), ("LlamaForCausalLM", "none that raft knows")],
)  # fmt: skip
def test_a_head_that_vllm_does_not_compute_is_refused_with_the_reason(without_weights, tmp_path, architecture, head):
    shutil.copytree(without_weights, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}))
    with pytest.raises(UserError, match=rf"{architecture}, head: {head}, and vLLM's server computes only head: class"):
        rewards(RewardModel(model=str(tmp_path), url="http://127.0.0.1:1/v1"), groups())


def test_pairs_of_segments_are_refused_where_the_model_tells_them_apart(tmp_path):
    save(tmp_path, "BertForSequenceClassification", max_position_embeddings=256, **SIZE)
    with pytest.raises(UserError, match="by the types of their tokens, which vLLM's server is not told"):
        rewards(RewardModel(model=str(tmp_path), template="pair", url="http://127.0.0.1:1/v1"), groups())


def test_two_servers_share_the_conversations_and_a_dead_one_loses_none(llama, serve):
    one, other, given = serve(llama), serve(llama), many(30)
    near = rewards(RewardModel(model=str(llama)), given)
    assert rewards(served(llama, one, other, max_concurrency=2), given) == pytest.approx(near, abs=1e-5)
    shared = Counter(map(tuple, one.scored + other.scored))
    assert len(shared) == shared.total() == 60 and min(len(one.scored), len(other.scored)) >= 10
    dead, living = serve(llama), serve(llama)
    dead.stop()
    assert rewards(served(llama, dead, living, max_concurrency=2), given) == pytest.approx(near, abs=1e-5)
    assert Counter(map(tuple, living.scored)) == shared
    urls = [dead.url, "http://127.0.0.1:1/v1"]
    with pytest.raises(UserError) as told:
        rewards(served(llama, dead, url=urls), given)
    assert all(f"\n  {url}: ConnectError" in str(told.value) for url in urls)


def test_servers_with_different_models_are_refused(llama, serve):
    right, wrong = serve(llama), serve(llama, change=lambda outputs: -outputs)
    with pytest.raises(UserError, match=r"do not have the same model: of the same two texts"):
        rewards(served(llama, right, wrong), groups())


def test_no_key_holds_a_url_and_that_of_a_model_in_memory_is_as_before(llama):
    one, two = "http://a/v1", "http://b/v1"
    keys = [describe(RewardModel(model=str(llama), url=url)) for url in (one, [two], [one, two], [two, one])]
    assert all(key == keys[0] for key in keys) and keys[0]["served"] is True
    named = describe(RewardModel(model=str(llama), url=one, served_model_name="tiny", timeout=1.0, api_key_env="KEY"))
    assert named == {**keys[0], "served": "tiny"}
    near = describe(RewardModel(model=str(llama)))
    assert near.keys() == {
        "is", "model", "revision", "head", "label", "read", "dtype", "attn_implementation", "max_tokens_per_batch",
        "template", "bos", "max_length", "truncation",
    }  # fmt: skip
    assert near["model"] == keys[0]["model"]


def test_it_scores_while_responses_are_made_and_needs_no_device(llama):
    far, near = RewardModel(model=str(llama), url="http://a/v1"), RewardModel(model=str(llama))
    assert (protocols.remote(far), protocols.uses_device(far)) == (True, False)
    assert (protocols.remote(near), protocols.uses_device(near), protocols.batch_size(near)) == (False, True, 64)


def test_a_recipe_with_a_url_is_sound_without_weights_and_needs_no_memory_for_them(
    without_weights, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    reward = {"kind": "model", "model": str(without_weights), "template": "plain"}
    url = {"url": ["http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"], "served_model_name": "tiny"}
    turns = {}
    for name, given in (("far", reward | url), ("near", reward)):
        worlds.make_recipe(tmp_path, name=name, reward=given)
        loaded = recipe.load(tmp_path / "recipe.yaml")
        assert list(preflight.check(loaded)) == []
        turns[name] = [turn.name for turn in memory_plan.plan(loaded, memory_plan.device())]
    assert set(turns["near"]) - set(turns["far"]) == {"score"}


def test_the_doctor_examines_it_by_its_server(llama, serve):
    prompts = [group.prompt for group in many(3)]
    found = {one.check: one for one in doctor.examine(served(llama, serve(llama)), prompts)}
    assert list(found) == ["served", "bos", "round_trip", "tells_apart", "room"]
    assert found["served"].level == "ok" and "raw outputs by vLLM's server" in found["served"].message
    near = {one.check: one for one in doctor.examine(RewardModel(model=str(llama)), prompts)}
    assert all(found[check] == near[check] for check in ("bos", "round_trip", "tells_apart", "room"))


WRONG = {
    "url": ({"url": "host:1"}, "not an address"),
    "served_model_name": ({"served_model_name": "x"}, "give the server's url"),
    "dtype": ({"url": "http://h/v1", "dtype": "float32"}, "loads itself"),
    "max_tokens_per_batch": ({"url": "http://h/v1", "max_tokens_per_batch": 9}, "loads itself"),
    "head": ({"url": "http://h/v1", "head": "token"}, "not computed by vLLM's server"),
    "timeout": ({"url": "http://h/v1", "timeout": 0.0}, "out of range"),
}


@pytest.mark.parametrize("key", WRONG)
def test_wrong_options_are_told(key):
    options, words = WRONG[key]
    faults: list = []
    assert build(RewardModel, {"model": "m", **options}, "reward", faults) is None
    assert [fault.key for fault in faults] == [f"reward.{key}"] and words in faults[0].message


@pytest.mark.engine
@pytest.mark.nightly
@pytest.mark.parametrize("head", ["classifier", "attributes"])
def test_vllm_s_own_server_gives_the_rewards_of_the_model_in_memory(tmp_path, monkeypatch, head):
    """In float32 on a CPU they differ by about 1e-6."""
    large = {"hidden_size": 64, "num_attention_heads": 2}  # vLLM's attention on a CPU is for heads of 32 and more
    save(tmp_path, "LlamaForSequenceClassification", **{**LLAMA, **large, "num_labels": 1 + 4 * (head == "attributes")})
    engine_args = {"runner": "pooling", "max_model_len": 128}
    if head == "attributes":
        edit(tmp_path, lambda tensors: tensors.update({"score.bias": torch.randn(5)}))
        config = json.loads((tmp_path / "config.json").read_text())
        config["architectures"] = ["LlamaForDecisionTreeRewardModel"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        engine_args["hf_overrides"] = {"architectures": ["LlamaForSequenceClassification"]}
    server = vllm_server.Served(tmp_path, engine_args)
    try:
        monkeypatch.setenv("REWARD_KEY", server.key)
        where = {"url": server.url, "served_model_name": vllm_server.NAME, "api_key_env": "REWARD_KEY"}
        label = {"label": 0} if head == "attributes" else {}
        far, near = RewardModel(model=str(tmp_path), **where, **label), RewardModel(model=str(tmp_path), **label)
        given = many(20)
        for there, here in zip(far.score(given), near.score(given), strict=True):
            for one, other in zip(there, here, strict=True):
                assert one.reward == pytest.approx(other.reward, abs=1e-4)
                assert one.parts == pytest.approx(other.parts, abs=1e-4)
        (scores,) = far.score(groups(["x" * 300])[:1])
        assert "more than the 128 that the reward model reads" in scores[0].error
        assert {one.check: one.level for one in doctor.examine(far, [one.prompt for one in given[:3]])}[
            "served"
        ] == "ok"
    finally:
        server.stop()
