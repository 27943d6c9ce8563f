"""The laws of the vLLM generator, on the real engine with a tiny random policy; transformers on the other side.

The policy ties its embeddings: vLLM's own reload is silently wrong for those on a CPU.
"""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from raft.core.errors import UserError
from raft.core.records import Policy, Prompt
from raft.core.registry import build
from raft.generators import vllm
from raft.generators.vllm import VLLM
from raft.generators.vllm_plugin import architectures
from raft.models import chat_templates, from_scratch, weight_check
from raft.models.weight_check import ProbeError

pytestmark = pytest.mark.engine

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_attention_heads": 2, "head_dim": 32, "num_hidden_layers": 2,
    "intermediate_size": 128, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip
OPTIONS = VLLM(k=4, max_tokens=40)
PROMPTS = [Prompt(id=f"p{n}", text=f"the {n} cats sat on {'a mat and ' * (n % 7)}") for n in range(24)]


def policy(folder: Path, seed: int) -> Policy:
    from_scratch.make(folder, (prompt.content for prompt in PROMPTS), CONFIG, 300, seed)
    weight_check.make(folder, weight_check.first_texts(folder), folder / "probe.json")
    return Policy(folder, folder / "probe.json")


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    yield policy(folder / "0", 0), policy(folder / "1", 1)
    vllm.close()


def answers(policy: Policy, prompts=PROMPTS, options: VLLM = OPTIONS, seed: int = 7):
    return {group.prompt.id: group.responses for group in options.generate(policy, prompts, seed)}


def test_a_response_is_bit_for_bit_the_same_in_any_batch(policies):
    whole = answers(policies[0])
    for some in (PROMPTS[::-1], PROMPTS[10:], PROMPTS[3:4]):
        found = answers(policies[0], some)
        assert found == {prompt.id: whole[prompt.id] for prompt in some}  # tokens and log-probabilities
    fewer = answers(policies[0], PROMPTS[:6], replace(OPTIONS, k=2))
    assert all(found == whole[prompt_id][:2] for prompt_id, found in fewer.items())


def test_the_heads_that_the_kernel_of_a_cpu_takes_are_those_that_raft_knows(policies):
    """Asked of the kernel itself, for every multiple of 8; it was loaded with the engine."""
    assert answers(policies[0], PROMPTS[:1])
    import torch
    from vllm import _custom_ops
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    def takes(size: int) -> bool:
        lengths, starts = (torch.tensor(one, dtype=torch.int32) for one in ([4], [0, 4]))
        given = (
            1,
            2,
            2,
            size,
            lengths,
            torch.float32,
            starts,
            True,
            -1,
            _get_attn_isa(torch.float32, 128, size),
            False,
        )
        try:
            _custom_ops.cpu_attn_get_scheduler_metadata(*given)
        except RuntimeError as fault:
            assert "Unsupported CPU attention configuration" in str(fault)
            return False
        return True

    assert tuple(filter(takes, range(8, 1025, 8))) == architectures.HEADS


def test_responses_differ_with_the_seed_the_prompt_and_k(policies):
    some = answers(policies[0])
    other = answers(policies[0], seed=8)
    found = [one for group in (*some.values(), *other.values()) for one in group]
    texts = [tuple(one.token_ids) for one in found if len(one.token_ids) > 5]
    assert len(set(texts)) == len(texts)


def test_a_stop_text_that_never_comes_changes_nothing_and_vllm_spells_only_where_there_is_one(policies, monkeypatch):
    longer = replace(OPTIONS, max_tokens=170)
    found = answers(policies[0], options=longer)
    (engine,) = vllm._engines.values()
    spelled, step = [], engine.llm.step

    def watched():
        outputs = step()
        spelled.extend(one.outputs[0].text for one in outputs)
        return outputs

    monkeypatch.setattr(engine.llm, "step", watched)
    assert answers(policies[0], options=longer) == found and set(spelled) == {""}
    spelled.clear()
    assert answers(policies[0], options=replace(longer, stop=["\N{SNOWMAN}"])) == found  # log-probabilities too
    assert any(spelled)


def test_no_more_responses_are_under_way_than_the_cache_holds_in_full_and_they_are_the_same(policies, monkeypatch):
    found = answers(policies[0], PROMPTS[:6])
    (engine,) = vllm._engines.values()
    scheduler = engine.llm.engine_core.engine_core.scheduler
    (block,), under_way, step = engine.block_sizes, [], engine.llm.step

    def watched():
        running = [*scheduler.running, *scheduler.waiting]
        under_way.append(sum(-(-(one.num_prompt_tokens + 41) // block) for one in running))
        return step()

    monkeypatch.setattr(engine.llm, "step", watched)
    for room in (5, 1):
        monkeypatch.setattr(engine, "room", room)
        under_way.clear()
        assert answers(policies[0], PROMPTS[:6]) == found
        assert max(under_way) == room
    assert engine.blocks(block) == 1 and engine.blocks(block + 1) == 2


def test_the_room_is_that_of_vllms_own_cache_and_it_is_free_again(policies):
    answers(policies[0], PROMPTS[:6])
    (engine,) = vllm._engines.values()
    pool = engine.llm.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
    assert engine.room == pool.get_num_free_blocks()
    assert engine.block_sizes == [engine.llm.vllm_config.cache_config.block_size]


def test_what_vllm_does_not_start_with_is_an_error_that_says_why(policies):
    wrong = replace(OPTIONS, engine_args={"max_num_batched_tokens": 8})
    with pytest.raises(UserError, match=r"vLLM cannot start with .*max_num_batched_tokens"):
        vllm.Engine(wrong, policies[0])


def test_log_probabilities_are_those_of_transformers(policies):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(policies[0].path)
    tokenizer = AutoTokenizer.from_pretrained(policies[0].path)
    for prompt_id, found in answers(policies[0], PROMPTS[:5], replace(OPTIONS, temperature=0.7)).items():
        ids = tokenizer(next(p.text for p in PROMPTS if p.id == prompt_id))["input_ids"]
        for response in found:
            whole = torch.tensor([ids + response.token_ids])
            logprobs = model(whole).logits[0].log_softmax(-1)
            expected = [logprobs[len(ids) - 1 + at, token].item() for at, token in enumerate(response.token_ids)]
            assert response.logprobs == pytest.approx(expected, abs=1e-4)  # before the temperature


def test_a_new_policy_in_the_living_engine_answers_as_transformers_does(policies):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    greedy = replace(OPTIONS, k=1, temperature=0.0)
    for held in (policies[1], policies[0], policies[1]):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(held.path), AutoTokenizer.from_pretrained(held.path)
        for prompt_id, [response] in answers(held, PROMPTS[:6], greedy).items():
            ids = tokenizer(next(p.text for p in PROMPTS if p.id == prompt_id), return_tensors="pt")["input_ids"]
            expected = model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :].tolist()
            assert response.token_ids == expected


def test_the_proof_fires_when_the_reload_is_left_out(policies, monkeypatch):
    answers(policies[0], PROMPTS[:1])
    with monkeypatch.context() as left_out:
        left_out.setattr(vllm.Engine, "load", lambda engine, path: None)
        with pytest.raises(ProbeError, match="does not hold the weights"):
            answers(policies[1], PROMPTS[:1])
    answers(policies[1], PROMPTS[:1])


def test_the_proof_names_an_engine_that_still_holds_the_policy_before(policies, monkeypatch, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(policies[1].path, moved)
    content = json.loads((moved / "probe.json").read_text())
    content["before"] = json.loads(policies[0].probe.read_text())["logprobs"]
    (moved / "probe.json").write_text(json.dumps(content))
    answers(policies[0], PROMPTS[:1])
    with monkeypatch.context() as left_out:
        left_out.setattr(vllm.Engine, "load", lambda engine, path: None)
        with pytest.raises(ProbeError, match="still holds the weights of the policy before"):
            answers(Policy(moved, moved / "probe.json"), PROMPTS[:1])
    answers(policies[1], PROMPTS[:1])


def test_the_proof_fires_when_tied_embeddings_are_reloaded_as_vllm_does_by_itself(policies, monkeypatch):
    answers(policies[0], PROMPTS[:1])

    def only_vllm(engine, path):
        engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})

    with monkeypatch.context() as wrong:
        wrong.setattr(vllm.Engine, "load", only_vllm)
        with pytest.raises(ProbeError, match="nats"):
            answers(policies[1], PROMPTS[:1])
    answers(policies[1], PROMPTS[:1])


def test_the_stamp_says_how_near_the_engine_was_to_the_probe_and_what_computes_its_logits(policies):
    answers(policies[1], PROMPTS[:1])
    found = OPTIONS.proof()
    (engine,) = vllm._engines.values()
    wanted = json.loads(policies[1].probe.read_text())
    measured = [one for row in engine.likelihoods(wanted["tokens"]) for one in row]
    expected = [one for row in wanted["logprobs"] for one in row]
    squares = [(a - b) ** 2 for a, b in zip(measured, expected, strict=True)]
    assert found == {"probe_rms_nats": pytest.approx(fmean(squares) ** 0.5, rel=0.5), "head_dtype": "float32"}
    assert 0 < found["probe_rms_nats"] < 1e-4


def test_a_token_that_the_policys_folder_names_as_an_end_ends_a_response(policies, tmp_path, monkeypatch):
    whole = answers(policies[0])
    counts = Counter(token for group in whole.values() for one in group for token in one.token_ids[:-1])
    ((end, _),) = counts.most_common(1)
    shutil.copytree(policies[0].path, tmp_path / "policy")
    (tmp_path / "policy" / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, end]}))
    (engine,) = vllm._engines.values()
    monkeypatch.setattr(engine, "tokenizer", chat_templates.load_tokenizer(str(tmp_path / "policy")))
    for prompt_id, found in answers(policies[0]).items():
        for here, there in zip(found, whole[prompt_id], strict=True):
            ids = there.token_ids
            cut = ids[: ids.index(end) + 1] if end in ids else ids
            reason = "stop" if cut[-1] in (1, end) else "length"
            assert (here.token_ids, here.finish_reason) == (cut, reason)


def test_a_limit_cuts_without_an_end_token_and_an_end_keeps_it(policies):
    end = 1  # scratch's <|end|>
    found = [one for group in answers(policies[0], PROMPTS, replace(OPTIONS, k=16)).values() for one in group]
    cut = [one for one in found if one.finish_reason == "length"]
    ended = [one for one in found if one.finish_reason == "stop"]
    assert len(cut) + len(ended) == len(found) and cut and ended
    assert all(len(one.token_ids) == 40 and end not in one.token_ids for one in cut)
    assert all(one.token_ids.index(end) == len(one.token_ids) - 1 and "<|end|>" not in one.text for one in ended)


def test_a_stop_text_ends_a_response_and_is_left_out_of_it(policies):
    found = [one for group in answers(policies[0], options=replace(OPTIONS, stop=["a"])).values() for one in group]
    assert all("a" not in one.text for one in found)
    assert any(one.finish_reason == "stop" and len(one.token_ids) < 40 for one in found)


def test_groups_come_out_before_all_prompts_have_been_read(policies):
    read = []
    many = (read.append(n) or Prompt(id=f"m{n}", text="cats") for n in range(400))
    groups = replace(OPTIONS, max_tokens=4).generate(policies[0], many, 3)
    next(groups)
    assert len(read) < 300
    assert len({group.prompt.id for group in groups}) == 399


def test_what_was_left_under_way_does_not_come_out_later(policies):
    before = answers(policies[0])
    groups = OPTIONS.generate(policies[0], [Prompt(id=f"x{n}", text="cats") for n in range(40)], 3)
    next(groups)
    groups.close()
    assert answers(policies[0]) == before


def test_a_prompt_that_does_not_fit_is_named_with_the_numbers(policies):
    with pytest.raises(UserError, match=r"prompt 'long'|prompt long"):
        answers(policies[0], [Prompt(id="long", text="cats " * 300)])
    assert len(answers(policies[0], PROMPTS[:2])) == 2  # and the engine is as good as before


def test_engine_options_are_checked_by_name():
    faults: list = []
    build(VLLM, {"engine_args": {"max_num_seq": 3, "seed": 1, "gpu_memory_utilization": 0.5}}, "generator", faults)
    found = {fault.key: fault.message for fault in faults}
    assert set(found) == {"generator.engine_args.max_num_seq", "generator.engine_args.seed"}
    assert "did you mean max_num_seqs" in found["generator.engine_args.max_num_seq"]


def test_the_end_token_is_no_text_even_where_its_tokenizer_does_not_mark_it_as_special(material):
    from types import SimpleNamespace

    from raft.generators.sampling import Sampling
    from raft.models.chat_templates import load_tokenizer

    tokenizer = load_tokenizer(str(material / "models" / "TinyStories-656K"))
    ids = tokenizer("The end.", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    logprobs = SimpleNamespace(logprobs=[-1.0] * len(ids))
    output = SimpleNamespace(token_ids=ids, logprobs=logprobs, finish_reason="stop")
    response = vllm._response(output, tokenizer, Sampling().ends(tokenizer))
    assert response.text == " The end." and response.token_ids == ids  # as it goes on from a prompt


@pytest.mark.nightly
def test_an_engine_that_fails_is_built_again_once_and_the_answers_are_the_same(policies, monkeypatch):
    whole = answers(policies[0])
    (engine,) = vllm._engines.values()
    step, left = engine.llm.step, [30]

    def failing():
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("a kernel failed")
        return step()

    monkeypatch.setattr(engine.llm, "step", failing)
    found = list(OPTIONS.generate(policies[0], PROMPTS, 7))
    assert left[0] < 0, "the engine did not fail"
    assert engine not in vllm._engines.values()
    assert sorted(group.prompt.id for group in found) == sorted(prompt.id for prompt in PROMPTS)
    assert {group.prompt.id: group.responses for group in found} == whole
    (second,) = vllm._engines.values()
    monkeypatch.setattr(vllm, "Engine", lambda *_: second)  # which fails too
    monkeypatch.setattr(second.llm, "step", lambda: 1 / 0)
    with pytest.raises(vllm.EngineError, match="ZeroDivisionError"):
        answers(policies[0])
