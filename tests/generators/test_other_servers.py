"""What becomes of the answers of other people's servers: whole scores and generations against a small real one."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tiny_models import tiny_policy

from raft.core.errors import UserError
from raft.core.records import Group, Policy, Prompt, Response, Score
from raft.generators.remote import Remote
from raft.generators.sampling import spell
from raft.launch.local import Local
from raft.models.chat_templates import load_tokenizer
from raft.pipeline import stages
from raft.pipeline.score_file import score_file
from raft.rewards.judge.judge import Judge


class Server(ThreadingHTTPServer):
    """Answers what `says(asked)` returns: a status and a body; lists the models `card` with what it says of them."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.says, self.card, self.asked = None, {"id": "m", "owned_by": "x"}, []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is part of these tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *words) -> None:
        """Silence."""

    def do_GET(self) -> None:
        self.reply(200, {"data": [self.server.card]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        self.reply(*self.server.says(asked))

    def reply(self, status: int, body: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())


@pytest.fixture
def server():
    one = Server()
    threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield one
    one.shutdown()
    one.server_close()


def chat(content, reason="stop", **message):
    return 200, {"choices": [{"message": {"content": content, **message}, "finish_reason": reason}]}


def longer(asked: dict) -> str:
    """The letter of the longer turn, which a sound judge prefers."""
    text = asked["messages"][-1]["content"]
    a, b = (text.split(f"<turn of {name}>")[1].split("</turn")[0] for name in "AB")
    return "A" if len(a) > len(b) else "B"


FORMS = {
    "marks": lambda one, other: f"so [[{one}]]",
    "lower case": lambda one, other: f"[[{one.lower()}]]",
    "arena hard": lambda one, other: f"My final verdict is: [[{one}>>{other}]]",
    "json": lambda one, other: json.dumps({"reason": "x", "verdict": one}),
    "behind a thought": lambda one, other: f"<think>[[{other}]]</think>[[{one}]]",
    "parts": lambda one, other: [{"type": "thinking", "thinking": other}, {"type": "text", "text": f"[[{one}]]"}],
}


@pytest.fixture
def files(server, tmp_path):
    rows = {"prompt_id": "a", "text": "q", "responses": [{"text": "a long answer"}, {"text": "no"}, {"text": "medium"}]}
    (tmp_path / "in.jsonl").write_text(json.dumps(rows) + "\n")
    judge = f"{{kind: judge, url: '{server.url}', model: m, max_retries: 1, timeout: 20, max_tokens: 50}}"
    (tmp_path / "judge.yaml").write_text(judge)
    return tmp_path


def score(files):
    out = files / "out.jsonl"
    said = score_file(str(files / "judge.yaml"), files / "in.jsonl", out, None)
    return said, [json.loads(line)["scores"] for line in out.read_text().splitlines()]


@pytest.mark.parametrize("form", FORMS)
def test_a_verdict_is_read_in_every_form(server, files, form):
    def says(asked: dict):
        one = longer(asked)
        return chat(FORMS[form](one, "B" if one == "A" else "A"))

    server.says = says
    _, (found,) = score(files)
    assert [one["rank"] for one in found] == [0, 2, 1]


def test_a_verdict_of_the_users_own_form_is_read(server, files):
    server.says = lambda asked: chat(f"Better: {longer(asked)}!")
    (files / "judge.yaml").write_text((files / "judge.yaml").read_text().replace("}", ", verdict: 'Better: (\\w)'}"))
    _, (found,) = score(files)
    assert [one["rank"] for one in found] == [0, 2, 1]


def test_an_api_that_calls_max_tokens_otherwise_is_asked_in_its_words(server, files):
    def says(asked: dict):
        if "max_tokens" in asked:
            return 400, {"error": {"message": "'max_tokens' is not supported. Use 'max_completion_tokens' instead."}}
        return chat(f"[[{longer(asked)}]]")

    server.says = says
    _, (found,) = score(files)
    assert [one["rank"] for one in found] == [0, 2, 1]
    assert {one.get("max_completion_tokens") for one in server.asked} == {None, 50}


@pytest.mark.parametrize(
    "says, words",
    [
        (lambda asked: chat("<think>[[A]]</think> A is better."), "no verdict in: A is better."),
        (lambda asked: chat("<think>[[A]]"), "the judge thinks to the end of its answer"),
        (lambda asked: chat(None, reasoning_content="[[A]]"), "holds a thought"),
        (lambda asked: chat("[[A]]", "flubber"), "a reason that raft does not know (finish_reason flubber)"),
        (lambda asked: (400, {"error": {"code": "content_filter", "message": "x"}}), "status 400"),
    ],
)
def test_where_no_response_has_a_reward_the_score_fails_with_the_first_reason(server, files, says, words):
    server.says = says
    for _ in range(2):  # the second finds what the first has written
        with pytest.raises(UserError, match="none of 3 responses has a reward; the first, prompt a: ") as caught:
            score(files)
        assert words in str(caught.value)


@pytest.mark.parametrize("fails", [True, False])
def test_no_traceback_of_asyncio_whether_the_server_answers_or_fails(server, files, fails, capfd):
    server.says = lambda asked: (500, {}) if fails else chat(f"[[{longer(asked)}]]")
    judge = Judge(url=server.url, model="m", max_retries=0, max_concurrency=2)
    from raft.data.responses_file import groups

    try:
        list(judge.score(groups(files / "in.jsonl", None)))
    except UserError:
        assert fails
    assert capfd.readouterr().err == ""


# A generator, whose policy a server holds.

PROMPTS = [Prompt(id=f"p{n}", messages=[{"role": "user", "content": text}]) for n, text in enumerate(["a", "b", "x y"])]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return tiny_policy(tmp_path_factory.mktemp("policy"))


def answers(server, policy, **options):
    remote = Remote(**{"url": server.url, "model": "m", "k": 2, "max_tokens": 8, "max_retries": 0, **options})
    return {group.prompt.id: group.responses for group in remote.generate(policy, PROMPTS, 0)}


@pytest.mark.parametrize(
    "answer, words",
    [
        (chat("I cannot", "content_filter"), "withholds the text or a part of it (finish_reason content_filter)"),
        (chat(None, refusal="No."), "the model refuses to answer: No."),
        (chat(None, reasoning_content="hm"), "holds a thought (reasoning_content) and no text"),
        (chat("a", "flubber"), "a reason that raft does not know (finish_reason flubber)"),
        (chat("half \ud83d"), "half a character"),
        ((400, {"error": {"code": "content_filter", "message": "the prompt is filtered"}}), "the prompt is filtered"),
    ],
)
def test_a_response_that_is_withheld_is_a_place_with_its_reason_and_the_others_go_on(server, policy, answer, words):
    server.says = lambda asked: answer if asked["messages"][-1]["content"] == "b" else chat("a b")
    found = answers(server, policy)
    assert all(one.text == "a b" and not one.withheld for name in ("p0", "p2") for one in found[name])
    assert all(one.withheld and words in one.finish_reason and one.token_ids == [] for one in found["p1"])


@pytest.mark.parametrize("reason", ["eos", "eos_token", "end_turn", "STOP", None])
def test_a_generator_reads_every_dialect_of_the_end(server, policy, reason):
    server.says = lambda asked: chat("a b", reason)
    assert {one.finish_reason for group in answers(server, policy).values() for one in group} == {"stop"}


def of_vllm(ids, text=None, logprobs=None, reason="length"):
    def says(asked: dict):
        choice = {"message": {"content": text}, "finish_reason": reason, "token_ids": ids}
        each = [-1.0] * len(ids) if logprobs is None and isinstance(ids, list) else logprobs
        choice["logprobs"] = {"content": [{"logprob": one} for one in each]} if isinstance(each, list) else each
        return 200, {"choices": [choice]}

    return says


@pytest.mark.parametrize(
    "ids, logprobs, words",
    [
        ([5.5, 6.5], None, "token_ids that are not whole numbers"),
        ([True, False], None, "token_ids that are not whole numbers"),
        (["a"], None, "token_ids that are not whole numbers"),
        (7, [-1.0], "token_ids that are not whole numbers"),
        ([], None, "0 tokens where 1 to 8 can be"),
        ([5] * 997, None, "997 tokens where 1 to 8 can be"),
        ([-1], None, "the token -1"),
        ([10**6], None, "the token 1000000, and the policy has"),
        ([10**300], None, "the token 1000"),
        ([5, 6], [-1.0], "2 tokens and 1 log-probabilities"),
        ([5, 6], [-1.0, 5.0], "a log-probability of 5"),
        ([5, 6], [-1.0, "x"], "log-probabilities that are not numbers"),
        ([5, 6], [-1.0, None], "log-probabilities that are not numbers"),
        ([5, 6], [-1.0, float("nan")], "log-probabilities that are not numbers"),
        ([5, 6], [-1.0, float("-inf")], "log-probabilities that are not numbers"),
        ([5, 6], [-1.0, -(10**400)], "log-probabilities that are not numbers"),
        ([5, 6], 5, "not OpenAI's protocol"),
        ([5, 6], {"token_logprobs": {}}, "log-probabilities that are not numbers"),
        ([5, 6], None, "do not spell its text"),
    ],
)
def test_what_the_policy_cannot_have_written_is_refused_in_a_sentence(server, policy, ids, logprobs, words):
    server.card = {"id": "m", "owned_by": "vllm", "max_model_len": 64}
    server.says = of_vllm(ids, "quite another text", logprobs)
    with pytest.raises(UserError, match=r"^prompt p0: [^\n]{10,400}$") as caught:
        answers(server, policy, max_concurrency=1)
    assert words in str(caught.value)


def test_what_the_policy_wrote_is_taken_with_rounding_stop_texts_and_half_characters(server, policy):
    server.card = {"id": "m", "owned_by": "vllm", "max_model_len": 64}
    tokenizer = load_tokenizer(str(policy.path))
    ids = tokenizer("the cat sat on", add_special_tokens=False)["input_ids"][:8]
    whole = spell(tokenizer, ids)
    for text, stop in ((whole, []), (whole[:-2], [whole[-2:]]), (whole + "\ufffd", [])):
        server.says = of_vllm(ids, text, [1e-7] * len(ids), "stop")
        found = answers(server, policy, stop=stop)
        assert all(one.token_ids == ids for group in found.values() for one in group)


def test_tokens_that_the_policys_tokenizer_has_and_the_policy_has_not(server, policy, tmp_path):
    shutil.copytree(policy.path, tmp_path / "late")
    tokenizer = load_tokenizer(str(policy.path))
    tokenizer.add_tokens(["late"])
    tokenizer.save_pretrained(tmp_path / "late")
    late, rows = Policy(tmp_path / "late", tmp_path / "probe.json"), len(tokenizer) - 1
    server.says = lambda asked: chat("a late" if asked["messages"][-1]["content"] == "b" else "a b")
    found = answers(server, late)
    assert all(f"token {rows} ('late') is beyond" in one.finish_reason and one.withheld for one in found["p1"])
    assert not any(one.withheld for name in ("p0", "p2") for one in found[name])
    server.card = {"id": "m", "owned_by": "vllm", "max_model_len": 64}
    server.says = of_vllm([rows], "late")
    with pytest.raises(UserError, match=f"answers with the token {rows}, and the policy has {rows}"):
        answers(server, late)


@pytest.mark.parametrize("length", ["many", [64], 64.5, True, {}])
def test_a_context_that_is_no_number_is_refused(server, policy, length):
    server.card = {"id": "m", "max_model_len": length}
    with pytest.raises(UserError, match=r"says max_model_len: .* which is not a whole number"):
        answers(server, policy)


def test_a_reward_is_asked_for_nothing_that_was_withheld():
    class Longest:
        batch_size = 1

        def score(self, groups):
            for group in groups:
                assert all(one.text for one in group.responses)
                yield [Score(float(len(one.text))) for one in group.responses]

    fine, gone = Response("a b", [5], None, "stop"), Response.missing("filtered")
    groups = [Group(PROMPTS[0], [fine, fine]), Group(PROMPTS[1], [gone, gone]), Group(PROMPTS[2], [gone, fine])]
    scored = stages._scored(Local(), Longest(), groups)
    found = {group.prompt.id: [one.reward for one in scores] for group, scores in scored}
    assert [found[prompt.id] for prompt in PROMPTS[:3]] == [[3.0, 3.0], [None, None], [None, 3.0]]
