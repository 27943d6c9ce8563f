"""The laws of the Remote generator, against a real server on this machine that computes with a tiny real model."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import torch
from tiny_models import tiny_policy
from tiny_server import TinyServer, cut, fail, hang, logprobs_of, malformed
from transformers import AutoModelForCausalLM
from waiting import until

from raft.core.errors import UserError
from raft.core.records import Policy, Prompt
from raft.core.registry import build
from raft.core.seeds import derive
from raft.generators.remote import Remote
from raft.generators.transformers import Transformers
from raft.launch.openai_client import pause, retry_after
from raft.models.chat_templates import encode_response
from raft.store.keys import describe

PROMPTS = [Prompt(id=f"p{n}", text=text) for n, text in enumerate(["hello", "a", "the cat sat on", "x y"])]
CHAT = Prompt(id="chat", messages=[{"role": "user", "content": "hello"}])


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The server's threads compute one at a time; more threads inside each only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    policy = tiny_policy(tmp_path_factory.mktemp("policy"))
    model, texts = AutoModelForCausalLM.from_pretrained(policy.path), [[5, 6, 7, 8], [40, 41, 42]]
    policy.probe.write_text(json.dumps({"tokens": texts, "logprobs": [logprobs_of(model, ids) for ids in texts]}))
    return policy


@pytest.fixture
def serve(policy):
    """Starts servers, and stops them after the test."""
    running = []

    def start(owner: str = "vllm", policy: Policy = policy) -> TinyServer:
        server = TinyServer(policy, owner)
        running.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    yield start
    for server in running:
        server.closing = True
        server.hold.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(serve):
    return serve()


def remote(server: TinyServer, **options) -> Remote:
    return Remote(**{"url": server.url, "model": "tiny", "k": 2, "max_tokens": 8, "api_key_env": "TINY_KEY", **options})


def answers(generator, policy: Policy, prompts=PROMPTS, seed: int = 0) -> dict:
    return {group.prompt.id: group.responses for group in generator.generate(policy, prompts, seed)}


def text_requests(server: TinyServer) -> list[dict]:
    return [asked for asked in server.requests if "prompt_logprobs" not in asked]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "repetition_penalty": 1.1}])
def test_remote_responses_equal_local_ones_token_for_token(server, policy, options):
    prompts, options = [*PROMPTS, CHAT], {"k": 2, "max_tokens": 12, **options}
    options["stop"] = [answers(Transformers(**options), policy, prompts[:1], seed=5)["p0"][0].text[4]]
    far = answers(remote(server, **options), policy, prompts, seed=5)
    near = answers(Transformers(batch_size=1, **options), policy, prompts, seed=5)
    assert far.keys() == near.keys()
    for name, responses in near.items():
        for here, there in zip(responses, far[name], strict=True):
            assert replace(here, logprobs=None) == replace(there, logprobs=None)
            assert there.logprobs == pytest.approx(here.logprobs, abs=1e-4)
    assert {response.finish_reason for group in far.values() for response in group} >= {"stop"}


def test_a_vllm_server_is_told_every_token_that_ends_a_response_and_others_none(serve, policy):
    for owner, ends in (("vllm", [0, 1]), ("somebody", None)):  # EOS, and what the generation config adds
        server = serve(owner)
        answers(remote(server), policy, PROMPTS[:1])
        assert [asked.get("stop_token_ids") for asked in text_requests(server)] == [ends] * 2


def test_one_request_for_each_response_with_its_keyed_seed(server, policy):
    answers(remote(server, k=3), policy, PROMPTS[:1], seed=7)
    asked = text_requests(server)
    assert sorted(one["seed"] for one in asked) == sorted(derive(7, "p0", k) for k in range(3))
    assert all(0 <= one["seed"] < 2**63 and one["n"] == 1 for one in asked)


def test_vllm_is_told_every_option_so_that_none_comes_from_the_model_folder(server, policy):
    answers(remote(server, k=1), policy, PROMPTS[:1])
    assert text_requests(server)[0].items() >= {
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "logprobs": 0,
    }.items()  # fmt: skip


@pytest.mark.parametrize("owner", ["somebody", "nobody"])
def test_a_server_that_is_not_vllm_is_asked_in_plain_words_and_its_text_is_encoded(serve, policy, owner):
    server = serve(owner)
    prompts = [*PROMPTS, CHAT]
    far = answers(remote(server, max_tokens=12), policy, prompts)
    near = answers(Transformers(k=2, max_tokens=12), policy, prompts)
    tokenizer = server.loaded.tokenizer
    for prompt in prompts:
        for here, there in zip(near[prompt.id], far[prompt.id], strict=True):
            assert (there.text, there.finish_reason, there.logprobs) == (here.text, here.finish_reason, None)
            written = encode_response(tokenizer, prompt, here.text)
            whole = tokenizer(here.text, add_special_tokens=False)["input_ids"]
            assert there.token_ids == (written if here.finish_reason == "stop" else whole)
    known = {"model", "n", "seed", "max_tokens", "temperature", "top_p"}
    assert {frozenset(asked) - known for asked in server.requests} == {frozenset({"prompt"}), frozenset({"messages"})}


def test_the_key_travels_in_the_header_alone(server, policy, monkeypatch):
    answers(remote(server, k=1), policy, PROMPTS[:1])
    assert "authorization" not in {name.lower() for name in server.headers[-1]}
    monkeypatch.setenv("TINY_KEY", "secret-7")
    generator = remote(server, k=1)
    answers(generator, policy, PROMPTS[:1])
    assert server.headers[-1]["Authorization"] == "Bearer secret-7"
    assert "secret" not in repr(generator) + json.dumps(server.requests)


def test_a_refusal_is_an_error_at_once_that_names_the_prompt_and_hides_the_key(server, policy, monkeypatch):
    monkeypatch.setenv("TINY_KEY", "secret-7")
    generator = remote(server, k=1)
    server.faults.extend([lambda handler: False] * 2)  # the probe's two texts
    server.faults.append(fail(400, "prompt too long for key secret-7"))
    with pytest.raises(UserError, match=r"prompt p0.*status 400.*too long for key") as caught:
        answers(generator, policy, PROMPTS[:1])
    assert "secret" not in str(caught.value) and len(text_requests(server)) == 1


@pytest.mark.parametrize("faults", [[fail(500), fail(503)], [malformed], [cut], [fail(429)]])
def test_a_passing_fault_is_overcome_and_changes_nothing(serve, policy, faults):
    server = serve("somebody")
    whole = answers(remote(server, k=1), policy, PROMPTS[:1])
    server.faults.extend(faults)
    assert answers(remote(server, k=1), policy, PROMPTS[:1]) == whole
    assert len(server.requests) == 2 + len(faults)


def test_the_server_is_given_the_time_it_asks_for(serve, policy):
    server = serve("somebody")
    server.faults.append(fail(429, Retry_After="1"))
    answers(remote(server, k=1), policy, PROMPTS[:1])
    assert server.times[1] - server.times[0] >= 1


def test_pauses_grow_up_to_a_limit_and_differ():
    assert all(0.25 <= pause(0) <= 0.5 and 15 <= pause(50) <= 30 for _ in range(20))
    assert pause(3) != pause(3)


def test_the_time_a_server_asks_for_is_read_as_seconds_or_as_a_date():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert retry_after({"Retry-After": "2.5"}) == 2.5
    assert 27 < retry_after({"Retry-After": soon}) <= 30
    assert [retry_after(headers) for headers in ({}, {"Retry-After": "soon"}, {"Retry-After": "-1"})] == [0, 0, 0]


@pytest.mark.parametrize(
    "fault, words", [(fail(500), "status 500: out of order"), (hang, "no complete answer within 0.3 s")]
)
def test_after_the_last_attempt_the_error_says_what_to_do(serve, policy, fault, words):
    server = serve("somebody")
    server.faults.extend([fault] * 2)
    with pytest.raises(UserError, match=f"prompt p0: no answer .* after 2 attempts, at last {words}.*run it again"):
        answers(remote(server, k=1, max_retries=1, timeout=0.3), policy, PROMPTS[:1])
    assert len(server.requests) == 2


def test_a_server_that_is_not_there_is_an_error_that_says_so(server, policy):
    server.server_close()
    with pytest.raises(UserError, match=r"no answer.*(ConnectError|ReadError).*check that the server runs"):
        answers(remote(server, max_retries=0), policy)


def test_a_server_with_other_weights_is_refused(serve, policy, tmp_path):
    other = tiny_policy(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(other.path)
    model.get_output_embeddings().weight.data.neg_()
    model.save_pretrained(other.path)
    wrong = serve(policy=other)
    with pytest.raises(UserError, match=r"holds other weights than the policy.*--served-model-name tiny"):
        answers(remote(wrong), policy)
    assert not text_requests(wrong)
    assert answers(remote(serve(), k=1), policy, PROMPTS[:1])


def test_a_policy_without_a_probe_is_taken_on_trust(server, policy, tmp_path):
    assert answers(remote(server, k=1), replace(policy, probe=tmp_path / "none.json"), PROMPTS[:1])


def test_a_model_that_the_server_does_not_have_is_named_with_those_it_has(server, policy):
    with pytest.raises(UserError, match=r"has no model 'tinny'; did you mean tiny.*allowed: large, tiny"):
        answers(remote(server, model="tinny"), policy)


def test_a_prompt_that_the_server_would_cut_short_is_named(server, policy):
    with pytest.raises(UserError, match=r"prompt p2 has 14 tokens and generator\.max_tokens is 51.*64.*lower"):
        answers(remote(server, k=1, max_tokens=51), policy)


def test_a_foreign_protocol_is_an_error(serve, policy):
    server = serve("somebody")
    server.faults.append(lambda handler: handler.reply(200, {"answer": "hello"}))
    with pytest.raises(UserError, match=r"prompt p0: .*not OpenAI's protocol"):
        answers(remote(server, k=1), policy, PROMPTS[:1])


def test_requests_and_prompts_under_way_are_bounded(server, policy):
    read = []

    def prompts():
        for n in range(40):
            read.append(n)
            yield Prompt(id=str(n), text="hello")

    done = 0
    for _ in remote(server, k=3, max_tokens=2, max_concurrency=4).generate(policy, prompts(), 0):
        done += 1
        assert len(read) - done <= 4
    assert done == 40 and 2 <= server.most_busy <= 4


def test_a_slow_prompt_does_not_hold_the_others_back(serve, policy):
    server = serve("somebody")
    server.faults.append(hang)
    groups = remote(server, k=1).generate(policy, PROMPTS, 0)
    done = {next(groups).prompt.id for _ in range(3)}
    until(lambda: server.busy == 1)  # whichever request came first is still held back
    server.hold.set()
    assert done | {group.prompt.id for group in groups} == {prompt.id for prompt in PROMPTS} and len(done) == 3


def test_closing_the_groups_ends_everything_promptly(serve, policy):
    server = serve("somebody")
    server.faults.append(hang)
    groups = remote(server, k=1).generate(policy, PROMPTS, 0)
    next(groups)
    start = time.monotonic()
    groups.close()
    assert time.monotonic() - start < 1


def test_ctrl_c_in_a_notebook_ends_everything_promptly(serve, policy):
    server = serve("somebody")
    server.faults.extend([hang] * 4)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            answers(remote(server, k=1), policy)
        assert time.monotonic() - start < 2
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


def seeds(*servers: TinyServer) -> list[int]:
    return sorted(asked["seed"] for one in servers for asked in text_requests(one))


def test_two_servers_share_the_responses_which_are_those_of_one(serve, policy):
    alone, *both = serve(), serve(), serve()
    whole = answers(remote(alone, k=3), policy)
    assert answers(remote(alone, k=3, max_concurrency=2, url=[one.url for one in both]), policy) == whole
    assert seeds(*both) == seeds(alone) and all(len(text_requests(one)) >= 3 for one in both)
    assert all(1 <= one.most_busy <= 2 for one in both)
    probes = [[asked["prompt"] for asked in one.requests if "prompt_logprobs" in asked] for one in both]
    assert [sorted(map(tuple, one)) for one in probes] == [[(5, 6, 7, 8), (40, 41, 42)]] * 2


def test_a_dead_server_loses_no_response_and_repeats_none(serve, policy):
    alone, living, dead = serve(), serve(), serve()
    dead.shutdown()
    dead.server_close()
    urls = [dead.url, living.url]
    assert answers(remote(alone, url=urls), policy) == answers(remote(alone), policy)
    assert seeds(living) == seeds(alone) and len(set(seeds(living))) == 2 * len(PROMPTS)


def test_one_server_of_several_with_other_weights_is_refused_by_its_name(serve, policy, tmp_path):
    other = tiny_policy(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(other.path)
    model.get_output_embeddings().weight.data.neg_()
    model.save_pretrained(other.path)
    right, wrong = serve(), serve(policy=other)
    with pytest.raises(UserError, match=rf"^{wrong.url} holds other weights than the policy"):
        answers(remote(right, url=[right.url, wrong.url]), policy)
    with pytest.raises(UserError, match=r"generator\.url: the servers differ: .*vllm (True|False), max_model_len"):
        answers(remote(right, url=[right.url, serve("somebody").url]), policy)


def test_no_key_holds_how_many_servers_there_are_or_where():
    one, other = "http://a/v1", "http://b/v1"
    keys = [describe(Remote(url=url, model="m")) for url in (one, [other], [one, other], [other, one])]
    assert all(key == keys[0] for key in keys) and "url" not in keys[0]


def test_options_are_checked():
    wrong = {"url": "localhost:8000", "model": "m", "max_concurrency": 0, "max_retries": -1, "timeout": 0.0, "k": 0}
    faults = []
    build(Remote, wrong, "generator", faults)
    assert {fault.key for fault in faults} == {f"generator.{key}" for key in wrong if key != "model"}
    for url in ("http://u:secret@host/v1", "http://host:port/v1", "ftp://host"):
        faults.clear()
        assert build(Remote, {"url": url, "model": "m"}, "generator", faults) is None
        assert [fault.key for fault in faults] == ["generator.url"]
        assert "secret" not in faults[0].message
