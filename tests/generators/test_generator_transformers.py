"""The laws of the Transformers generator, with tiny random models and transformers' own functions on the other side."""

from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_policy, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
)

from raft.core.errors import UserError
from raft.core.records import Policy, Prompt
from raft.core.registry import build
from raft.core.seeds import derive
from raft.generators.transformers import Drawing, Transformers, load

PROMPTS = [Prompt(id=f"p{n}", text=text) for n, text in enumerate(["hello", "a", "the cat sat on", "x y", "one two 3"])]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The models are so small that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def policy(request, tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp(request.param), request.param)


def answers(generator: Transformers, policy: Policy, prompts=PROMPTS, seed: int = 0) -> dict:
    return {group.prompt.id: group.responses for group in generator.generate(policy, prompts, seed)}


def test_greedy_equals_greedy_generation_of_each_prompt_alone(policy):
    drawn = answers(Transformers(k=1, temperature=0, max_tokens=12), policy)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy.path), tiny_tokenizer()
    model.generation_config = GenerationConfig()
    for prompt in PROMPTS:
        ids = tokenizer(prompt.text, return_tensors="pt")["input_ids"]
        ends = {"eos_token_id": [0, 1], "pad_token_id": 0}
        alone = model.generate(ids, max_new_tokens=12, do_sample=False, **ends)[0, ids.shape[1] :].tolist()
        assert drawn[prompt.id][0].token_ids == alone


def test_frequencies_over_many_seeds_are_the_softmax_of_the_logits(policy):
    """Chi-square with fixed seeds over the cells that expect at least 5; the bound is five standard deviations."""
    count, prompt = 4000, PROMPTS[2]
    drawn = answers(Transformers(k=count, temperature=1.3, top_k=20, max_tokens=1), policy, [prompt])[prompt.id]
    seen = torch.bincount(torch.tensor([response.token_ids[0] for response in drawn]), minlength=len(tiny_tokenizer()))
    logits = full_logits(policy, prompt.text, [])[-1] / 1.3
    logits[logits < logits.topk(20).values[-1]] = float("-inf")
    expected = count * logits.softmax(-1)
    cells = expected >= 5
    assert cells.sum() > 3 and seen[expected == 0].sum() == 0
    square = ((seen - expected)[cells] ** 2 / expected[cells]).sum()
    freedom = cells.sum() - 1
    assert square < freedom + 5 * (2 * freedom) ** 0.5


def full_logits(policy: Policy, text: str, response: list[int]) -> torch.Tensor:
    """The logits at every position, by one forward pass without cache, batch or padding."""
    ids = tiny_tokenizer()(text)["input_ids"] + response
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(policy.path)(torch.tensor([ids]), use_cache=False).logits[0]


def test_logprobs_are_those_of_the_policy_before_temperature_and_filters(policy):
    options = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "repetition_penalty": 1.3, "max_tokens": 10}
    for name, responses in answers(Transformers(k=2, **options), policy).items():
        text = next(prompt.text for prompt in PROMPTS if prompt.id == name)
        for response in responses:
            n = len(response.token_ids)
            table = full_logits(policy, text, response.token_ids)[-n - 1 : -1].log_softmax(-1)
            expected = table.gather(1, torch.tensor(response.token_ids)[:, None])[:, 0]
            assert torch.allclose(torch.tensor(response.logprobs), expected, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.5, "top_p": 0.9, "min_p": 0.01}])
def test_responses_do_not_depend_on_the_prompts_beside_them(policy, options):
    generator = Transformers(k=3, max_tokens=12, batch_size=5, **options)
    together = answers(generator, policy)
    apart = answers(replace(generator, batch_size=2), policy, PROMPTS[::-1])
    alone = answers(replace(generator, batch_size=1), policy)
    for prompt in PROMPTS:
        for one, other, third in zip(together[prompt.id], apart[prompt.id], alone[prompt.id], strict=True):
            assert one.token_ids == other.token_ids == third.token_ids
            assert torch.allclose(torch.tensor(one.logprobs), torch.tensor(third.logprobs), atol=1e-4)


def test_response_k_is_keyed_by_seed_prompt_and_k_alone(policy):
    few, many = (answers(Transformers(k=k, max_tokens=12), policy, PROMPTS[:2]) for k in (2, 4))
    assert [response.token_ids for response in many["p0"][:2]] == [response.token_ids for response in few["p0"]]
    assert len({tuple(response.token_ids) for response in many["p0"] + many["p1"]}) == 8
    other = answers(Transformers(k=2, max_tokens=12), policy, PROMPTS[:1], seed=1)
    assert other["p0"][0].token_ids != few["p0"][0].token_ids


def test_the_global_random_state_is_neither_read_nor_moved(policy):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = answers(Transformers(k=2, max_tokens=5), policy)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert answers(Transformers(k=2, max_tokens=5), policy) == first


def test_a_response_ends_with_any_end_token_or_at_the_limit(policy):
    drawn = [response for group in answers(Transformers(k=40, max_tokens=30), policy).values() for response in group]
    for response in drawn:
        ended = response.token_ids[-1] in (0, 1)
        assert response.finish_reason == ("stop" if ended else "length")
        assert not {0, 1} & set(response.token_ids[:-1])
        assert len(response.token_ids) == len(response.logprobs) == (len(response.token_ids) if ended else 30)
        spoken = response.token_ids[:-1] if ended else response.token_ids
        assert response.text == tiny_tokenizer().decode(spoken, skip_special_tokens=True).rstrip("\ufffd")
    assert {response.finish_reason for response in drawn} == {"stop", "length"}
    assert {response.token_ids[-1] for response in drawn if response.finish_reason == "stop"} == {0, 1}


def test_a_stop_text_is_left_out_and_its_tokens_stay(policy):
    plain = answers(Transformers(k=4, max_tokens=20), policy)
    whole = plain["p0"][0]
    stop = whole.text[5:7]
    first = whole.text.find(stop)
    cut = answers(Transformers(k=4, max_tokens=20, stop=[stop]), policy)
    stopped = cut["p0"][0]
    assert (stopped.text, stopped.finish_reason) == (whole.text[:first], "stop")
    assert stopped.token_ids == whole.token_ids[: len(stopped.token_ids)]
    assert tiny_tokenizer().decode(stopped.token_ids, skip_special_tokens=True) == whole.text[: first + 2]
    for name, responses in cut.items():
        for with_stop, without in zip(responses, plain[name], strict=True):
            assert with_stop.token_ids == without.token_ids[: len(with_stop.token_ids)]
            assert stop not in with_stop.text and (stop in without.text or with_stop == without)


def test_a_chat_prompt_is_read_through_the_template(policy):
    chat = Prompt(id="p", messages=[{"role": "user", "content": "hello"}])
    plain = Prompt(id="p", text="u: hello\na: ")
    generator = Transformers(k=2, max_tokens=6)
    assert answers(generator, policy, [chat])["p"] == answers(generator, policy, [plain])["p"]


def test_responses_are_cleaned(policy):
    whole = answers(Transformers(k=1, max_tokens=20), policy)["p0"][0]
    marker = whole.text[4]
    clean = answers(Transformers(k=1, max_tokens=20, truncate_at=[marker]), policy)["p0"][0]
    assert (clean.text, clean.finish_reason) == (whole.text[: whole.text.find(marker)], "marker")


def test_prompts_are_read_block_by_block(policy):
    read = []

    def prompts():
        for prompt in PROMPTS:
            read.append(prompt.id)
            yield prompt

    groups = Transformers(k=1, max_tokens=2, batch_size=2).generate(policy, prompts(), 0)
    seen = [(next(groups).prompt.id, len(read)) for _ in PROMPTS]
    assert seen == [("p0", 2), ("p1", 2), ("p2", 4), ("p3", 4), ("p4", 5)]


def test_a_policy_is_loaded_once_until_it_is_released_or_another_comes(policy, tmp_path):
    generator = Transformers(k=1, max_tokens=2)
    answers(generator, policy)
    held = generator._held[policy.path]
    answers(generator, policy)
    assert generator._held[policy.path] is held
    other = tiny_policy(tmp_path)
    answers(generator, other)
    assert list(generator._held) == [other.path]
    generator.release()
    assert not generator._held
    assert answers(generator, policy)


def test_a_prompt_too_long_is_named_with_what_to_do(policy):
    with pytest.raises(UserError, match=r"prompt p2 has 14 tokens and generator\.max_tokens is 51.*64.*lower"):
        answers(Transformers(k=1, max_tokens=51), policy)
    assert answers(Transformers(k=1, max_tokens=50), policy)


def test_a_prompt_without_tokens_is_named(policy):
    with pytest.raises(UserError, match="prompt empty has no tokens"):
        answers(Transformers(k=1), policy, [Prompt(id="empty", text="")])


def test_a_mark_at_the_very_end_never_draws_a_token_that_was_filtered_out(policy):
    loaded = load(policy.path, "float32", "cpu")
    drawing = Drawing(Transformers(max_tokens=1), loaded, [derive("x")])
    drawing.uniform[:] = 1.0
    drawing.draw(torch.tensor([[5]]), torch.tensor([[0.3, 0.1, 0.2, float("-inf"), float("-inf")]]))
    assert drawing.token_ids == [[2]]


def test_options_are_checked():
    faults = []
    build(Transformers, {"batch_size": 0, "dtype": "float8", "device": "cpu"}, "generator", faults)
    assert [fault.key for fault in faults] == ["generator.dtype"]
    faults.clear()
    build(Transformers, {"batch_size": 0, "k": 0}, "generator", faults)
    assert {fault.key for fault in faults} == {"generator.batch_size", "generator.k"}


def test_a_device_that_is_not_here_is_refused_before_the_weights_are_read(tmp_path):
    with pytest.raises(
        UserError, match=r"^generator\.device: cuda:99 is not on this machine \([^\n]+\); leave the key"
    ):
        load(tmp_path, "float32", "cuda:99")
