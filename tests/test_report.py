"""The page of a run: what is in it is read back from its bytes, and what it shows from a real browser."""

import base64
import fcntl
import gzip
import hashlib
import itertools
import json
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import worlds
from chromium import FOUND, Page, browser
from folders import response, write_run

from raft import records, report, report_groups
from raft.errors import UserError
from raft.records import Drop, Group, Pair, Prompt, Score

ASSETS = Path(report.__file__).parent
HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='pwned = 2'><!-- <script>"
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
ARABIC = "كان يا مكان في قديم الزمان، قطة صغيرة اسمها لولو."
OVERRIDE = "evil \u202e reversed \u2066 and \x1b[31m red \U000e0041 tag"


def text(policy: int, prompt: int, index: int) -> str:
    """Of prompt 1 hostile, Japanese, Arabic and invisible text; else words that tell where they are from."""
    odd = [HOSTILE, JAPANESE, ARABIC, OVERRIDE]
    if prompt == 1:
        return odd[index % 4]
    return f'One day policy {policy} met "{prompt}".\nIt was the {"last" if policy == 2 else "first"} word {index}.'


def reward(policy: int, prompt: int, index: int) -> float | None:
    """Prompt 0 is tied, prompt 2 has a response without a reward, prompt 3 gains most."""
    if prompt == 0:
        return 1.0
    if (prompt, index) == (2, 1):
        return None
    return float(policy * (10 if prompt == 3 else 1) + ((index * 3 + prompt) % 7))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "mine"
    write_run(folder, prompts=6, k=4, iterations=2, text=text, reward=reward, question="Tell me of {} <b>".format)
    doctor = [{"reward": "reward", "check": "same_everywhere", "level": "warning", "message": f"look {HOSTILE}"}]
    records.write(folder / "doctor.jsonl", doctor)
    (folder / "resolved.yaml").write_text(f"name: mine\niterations: 2\n# {HOSTILE}\n")
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> bytes:
    return report.write(run).read_bytes()


def blocks(page: bytes) -> dict[str, bytes]:
    """What is packed in a page, by the name of the block."""
    found = re.findall(rb'<script type="application/octet-stream;base64" id="([^"]+)">([^<]*)</script>', page)
    return {name.decode(): gzip.decompress(base64.b64decode(packed, validate=True)) for name, packed in found}


def facts(page: bytes) -> dict[str, Any]:
    (found,) = re.findall(rb'<script type="application/json" id="facts">([^<]*)</script>', page)
    return json.loads(found)


def packed_groups(page: bytes, key: str) -> list[dict[str, Any]]:
    """The groups of a batch, in the order of its chunks."""
    (batch,) = [one for one in facts(page)["batches"] if one["key"] == key]
    chunks = blocks(page)
    found: list[dict[str, Any]] = []
    for number, start in enumerate(batch["starts"]):
        assert start == len(found)
        found += map(json.loads, chunks[f"chunk-{key}-{number}"].split(b"\n"))
    return found


def test_every_response_of_every_policy_is_in_the_page_with_its_rewards(run: Path, page: bytes):
    places = {"t1": "001", "t2": "002", "e0": "000/evaluation", "e1": "001/evaluation", "e2": "002/evaluation"}
    assert [one["key"] for one in facts(page)["batches"]] == ["e0", "t1", "e1", "t2", "e2"]
    for key, place in places.items():
        folder = run / "iterations" / place
        made = packed_groups(page, key)
        both = zip(records.read(folder / "responses.jsonl"), records.read(folder / "scores.jsonl"), strict=True)
        for group, (answered, scored) in zip(made, both, strict=True):
            assert group["id"] == answered["prompt_id"]
            for one, given, score in zip(group["responses"], answered["responses"], scored["scores"], strict=True):
                assert (one["text"], one["tokens"]) == (given["text"], len(given["token_ids"]))
                assert one.get("reward") == score.get("reward") and one.get("error") == score.get("error")
                assert one.get("parts", {}) == score["parts"]
        selected = [] if key[0] == "e" else records.read(folder / "selected.jsonl")
        picked = {row["prompt_id"]: row["index"] for row in selected}
        assert {one["id"]: one["picks"][0][0] for one in made if "picks" in one} == picked
    assert packed_groups(page, "t1")[2]["responses"][1]["dropped"] == "select: no reward"


def test_the_index_says_of_each_group_what_its_responses_say(page: bytes):
    for key in ("t1", "t2", "e1"):
        rows = json.loads(b"[" + blocks(page)[f"index-{key}"].replace(b"\n", b",") + b"]")
        for row, group in zip(rows, packed_groups(page, key), strict=True):
            known = [one["reward"] for one in group["responses"] if "reward" in one]
            assert row[0] == group["id"] and row[1] == ("" if key == "e1" else f"Tell me of {group['id'][1:]} <b>")
            assert row[2:5] == [pytest.approx(np.mean(known), rel=1e-5), max(known), min(known)]
            assert row[6] == max(one["tokens"] for one in group["responses"])
            number = int(group["id"][1:])
            expected = {"tied": number == 0, "failed": number == 2, "dropped": number == 2 and key[0] == "t"}
            assert row[7] == sum(report_groups.FLAGS[name] for name, holds in expected.items() if holds)


def test_best_of_n_is_the_mean_of_the_maximum_over_all_subsets(page: bytes):
    (batch,) = [one for one in facts(page)["batches"] if one["key"] == "t2"]
    table = [[reward(1, prompt, index) for index in range(4)] for prompt in range(6)]
    for n, value in batch["reward_at_n"]:
        known = [[one for one in row if one is not None] for row in table]
        of_each = [np.mean([max(some) for some in itertools.combinations(row, n)]) for row in known if len(row) >= n]
        assert value == pytest.approx(np.mean(of_each))
    assert [n for n, _ in batch["reward_at_n"]] == [1, 2, 4]
    flat = [one for row in table for one in row if one is not None]
    assert batch["rewards"]["count"] == len(flat) == sum(batch["rewards"]["bins"])
    assert batch["rewards"]["quantiles"][3] == pytest.approx(np.median(flat))


def test_hostile_text_ends_no_tag(run: Path, page: bytes):
    assert HOSTILE.encode() not in page and b"<img" not in page and b"<b>" not in page
    assert page.count(b"<script") == page.count(b"</script>") == 2 + len(blocks(page))
    assert HOSTILE in facts(page)["recipe"] and HOSTILE in facts(page)["findings"][0]["message"]


def test_one_script_may_run_and_nothing_may_be_fetched(page: bytes):
    policy = re.search(rb'Content-Security-Policy" content="([^"]+)"', page)[1].decode()
    (script,) = re.findall(rb"<script>(.*?)</script>", page, re.DOTALL)
    (style,) = re.findall(rb"<style>(.*?)</style>", page, re.DOTALL)
    for name, content in (("script", script), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert f"{name}-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';") and "connect" not in policy and "unsafe" not in policy
    assert b"\r" not in script + style  # a browser would turn it into a newline, and the hash would be wrong
    own = re.sub(rb'<script type="[^"]+" id="[^"]+">[^<]*</script>', b"", page)  # without the data
    outside = re.findall(rb"""(?:src|href)\s*=\s*["']?(?!#)[^"'>\s]+""", own)
    assert not outside and b"@import" not in own and b"url(" not in own


def test_the_script_never_parses_text_as_html():
    code = "".join((ASSETS / name).read_text() for name in report.SCRIPTS)
    for word in [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "srcdoc",
        "DOMParser",
    ]:
        assert word not in code, word


def test_the_same_files_give_the_same_page(run: Path, page: bytes, tmp_path: Path):
    assert report.write(run, tmp_path / "again.html").read_bytes() == page


def test_memory_does_not_grow_with_the_texts(tmp_path: Path):
    words = np.array([f"{one}{other}" for one in worlds.WORDS for other in worlds.WORDS])

    def story(policy: int, prompt: int, index: int) -> str:
        return " ".join(words[np.random.default_rng([policy, prompt, index]).integers(len(words), size=200)])

    peaks, sizes = [], []
    for count in (300, 1500):
        run = write_run(tmp_path / f"run{count}", count, 4, 1, story, reward)
        tracemalloc.start()
        sizes.append(report.write(run).stat().st_size)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    texts = 4 * len(story(0, 0, 0))  # of a prompt
    assert peaks[1] - peaks[0] < 0.1 * texts * 1200, (sizes, peaks)  # the rewards of the iteration, but no text
    assert 4 * sizes[0] < sizes[1] < 0.6 * texts * 1500, sizes


def test_a_report_of_a_live_run_shows_what_is_there(tmp_path: Path):
    run = write_run(tmp_path / "live", 3, 2, 2, text, reward)
    last = run / "iterations" / "002"
    for name in ("selected.jsonl", "scores.jsonl", "metrics.json"):
        (last / name).unlink()
        (last / f"{name}.stamp.json").unlink()
    (last / "dropped.jsonl").unlink()
    (last / "scores.jsonl.partial").write_text('{"hash":"x"}\n{"prompt_id":"p0"}\n{"prompt_id"')
    with open(run / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        page = report.write(run).read_bytes()
    told = facts(page)
    assert told["running"] and told["iterations"] == {"made": 1, "wanted": 2}
    assert told["half_made"] == [{"artifact": "iterations/002/scores.jsonl", "groups": 2}]
    unscored = packed_groups(page, "t2")
    assert [one["text"] for one in unscored[1]["responses"]] == [text(1, 1, 0), text(1, 1, 1)]
    assert not any("reward" in one or "error" in one for group in unscored for one in group["responses"])
    assert not facts(report.write(run).read_bytes())["running"]


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path):
    run = write_run(tmp_path / "torn", 3, 2, 1, text, reward)
    before = report.write(run).read_bytes()
    scores = run / "iterations" / "001" / "scores.jsonl"
    scores.write_text("".join(scores.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="001: the files here do not belong together"):
        report.write(run)
    assert (run / "report.html").read_bytes() == before
    assert not [file for file in run.iterdir() if file.name.endswith(".tmp")]
    with pytest.raises(UserError, match="is a folder; name a file"):
        report.write(run, tmp_path)
    with pytest.raises(UserError, match="there is no such folder"):
        report.write(run, tmp_path / "none" / "x.html")


def test_drops_are_counted_by_reason_whatever_their_numbers(tmp_path: Path):
    run = write_run(tmp_path / "drops", 3, 2, 1, text, reward)
    reason = "{} tokens, more than prompts.max_tokens: 512".format
    long = [Drop(f"x{n}", None, "collect", reason(n + 600)).row() for n in range(9)]
    records.write(run / "dropped.jsonl", [*long, Drop("y", None, "collect", "held out for evaluation").row()])
    made = facts(report.write(run).read_bytes())["dropped"]
    told = {(one["where"], one["reason"]): (one["prompts"], one["responses"]) for one in made}
    assert told == {
        ("", "600 tokens, more than prompts.max_tokens: 512"): (9, 0),
        ("", "held out for evaluation"): (1, 0),
        ("iterations/001", "no reward"): (0, 1),
    }


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of job: label: one prompt, three responses that only compare with each other, one pair."""
    run = tmp_path_factory.mktemp("label") / "pairs"
    run.mkdir()
    (run / "run.json").write_text('{"job": "label", "seed": 0}')
    made = [response(one, seed) for seed, one in enumerate(("good", "bad", "good"))]
    prompt = Prompt("p", text="which? ")
    records.write(run / "prompts.jsonl", [prompt.row()])
    records.write(run / "responses.jsonl", [Group(prompt, made).row()])
    scores = [Score(0.5, rank=1), Score(-1.0, rank=2), Score(0.6, rank=0)]
    records.write(run / "scores.jsonl", [{"prompt_id": "p", "scores": [one.row() for one in scores]}])
    records.write(run / "selected.jsonl", [Pair("p", made[2], made[1], text="which? ").row()])
    return run


def test_pairs_are_marked_as_chosen_and_rejected(labelled: Path):
    page = report.write(labelled).read_bytes()
    (group,) = packed_groups(page, "g")
    assert group["picks"] == [[2, 1]] and [one["rank"] for one in group["responses"]] == [1, 2, 0]
    assert facts(page)["batches"][0]["reward_at_n"] == []  # strengths within a prompt say nothing between prompts


def test_a_training_that_diverged_is_reported_too(tmp_path: Path):
    run = write_run(tmp_path / "nan", 2, 2, 1, text, reward)
    file = run / "iterations" / "001" / "metrics.json"
    told = json.loads(file.read_text())
    risen = [{"text": "wow", "now": 0.5, "before": 0.1}]
    told["policy"] |= {"train/loss": float("nan"), "new/figure": 3.0, "new/list": risen}
    file.write_text(json.dumps(told))
    made = facts(report.write(run).read_bytes())
    assert made["rows"][1]["train/loss"] == "nan" and made["others"] == ["new/figure", "new/list"]


def test_a_branch_tells_of_the_iterations_that_it_shares(tmp_path: Path):
    run = write_run(tmp_path / "old", 2, 2, 1, text, reward)
    new = tmp_path / "new"
    (new / "iterations").mkdir(parents=True)
    (new / "run.json").write_text((run / "run.json").read_text())
    (new / "evaluation.jsonl").symlink_to(run / "evaluation.jsonl")
    for name in ("000", "001"):
        (new / "iterations" / name).symlink_to(run / "iterations" / name)
    old_told, told = (facts(report.write(one).read_bytes()) for one in (run, new))
    inside = [one for one in old_told["stages"] if one["iteration"] is not None]
    assert inside and inside == [one for one in told["stages"] if one["iteration"] is not None]
    assert told["batches"] == old_told["batches"] and told["dropped"] == old_told["dropped"]


def test_the_command_writes_the_page_of_a_real_run_and_names_what_is_no_run(tmp_path: Path):
    done = worlds.raft(tmp_path, "run", worlds.make_recipe(tmp_path, iterations=1))
    assert done.returncode == 0, done.stderr
    assert "raft report outputs/tiny" in done.stdout
    done = worlds.raft(tmp_path, "report", "outputs/tiny", "-o", "page.html")
    assert done.returncode == 0 and done.stdout.strip() == "page.html", done.stderr
    page = (tmp_path / "page.html").read_bytes()
    assert len(packed_groups(page, "t1")) == 16 and len(packed_groups(page, "e1")) == 8
    assert all(len(one["responses"]) == 4 and one["picks"] for one in packed_groups(page, "t1"))
    done = worlds.raft(tmp_path, "report", "base")
    assert done.returncode == 2 and "is not a run" in done.stderr


# ---------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    if FOUND is None:
        pytest.skip("no Chromium is installed here; CHROMIUM=/path/to/it names one elsewhere")
    with browser() as page:
        page.shape(1366, 800)
        yield page


@pytest.fixture
def opened(tab: Page, run: Path, page: bytes) -> Iterator[Any]:
    """Opens the page of the run at a fragment; at the end the page must have complained of nothing."""
    yield lambda fragment="": tab.open(run / "report.html", fragment)
    assert not tab.errors, tab.errors


def each(selector: str, what: str) -> str:
    """JavaScript: an expression in `one` for each element that a selector finds."""
    return f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => {what})"


ROWS = each(".row .id", "one.textContent")
CARDS = each("article.response", "one.querySelector('.prose')?.textContent ?? ''")


def test_what_a_model_wrote_is_shown_and_never_runs(tab: Page, opened: Any):
    opened("#prompts?in=t1&id=p1&order=made")
    assert tab.js(CARDS)[:3] == [HOSTILE, JAPANESE, ARABIC]
    assert tab.js("typeof window.pwned") == "undefined"
    assert tab.js("document.querySelectorAll('#detail img, #detail script, #detail b').length") == 0
    assert "Tell me of 1 <b>" in tab.js("document.querySelector('.prompt').textContent")
    opened("#run")
    assert HOSTILE in tab.js("document.querySelector('.recipe').textContent")
    opened("#overview")
    assert HOSTILE in tab.js("document.querySelector('#view-overview .notice').textContent")
    assert tab.js("typeof window.pwned") == "undefined"


def test_text_of_any_script_stands_in_its_own_direction_and_nothing_turns_it_unseen(tab: Page, opened: Any):
    opened("#prompts?in=t1&id=p1&order=made")
    assert tab.js(each("article .prose", "getComputedStyle(one).direction")) == ["ltr", "ltr", "rtl", "ltr"]
    assert tab.js(each("article .prose", "one.lang")) == ["", "ja", "", ""]
    shown = tab.js(CARDS)[3]
    assert shown == "evil U+202E reversed U+2066 and U+001B[31m red U+E0041 tag"
    assert tab.js("document.querySelectorAll('article .unseen').length") == 4


def test_the_winner_is_marked_by_words_and_the_responses_stand_by_reward(tab: Page, opened: Any, page: bytes):
    opened("#prompts?in=t2&id=p3")
    group = packed_groups(page, "t2")[3]
    best_first = sorted(group["responses"], key=lambda one: -one["reward"])
    assert tab.js(CARDS) == [one["text"] for one in best_first]
    badges = tab.js(each("article", "one.querySelector('.badge')?.textContent"))
    assert badges == ["selected", None, None, None]
    assert group["responses"][group["picks"][0][0]]["text"] == best_first[0]["text"]
    opened("#prompts?in=t2&id=p2")
    told = tab.js("document.querySelector('#detail').textContent")
    assert "no reward: boom" in told and "dropped: select: no reward" in told


def test_held_out_prompts_come_by_gain_and_stand_side_by_side_with_what_is_new(tab: Page, opened: Any):
    opened("#prompts")
    assert tab.js(ROWS)[0] == "h3"  # ten times the gain of the others
    assert tab.js(each("article h3", "one.textContent")) == ["policy 0", "policy 1", "policy 2"]
    assert tab.js(CARDS) == [text(policy, 3, 0) for policy in range(3)]
    fresh = each("article", "[...one.querySelectorAll('ins')].map((two) => two.textContent.trim())")
    assert tab.js(fresh) == [[], ["1"], ["2", "last"]]
    tab.js('document.querySelector(\'input[name="choice-answer"][value="1"]\').click()')
    tab.until(f"{CARDS}[0].endsWith('word 1.')")
    assert "answer=1" in tab.js("location.hash")


def test_filters_leave_what_they_say_and_can_be_combined(tab: Page, opened: Any):
    opened("#prompts?in=t1")
    click = "document.querySelector('.chip[data-name=\"{}\"]').click()"
    tab.js(click.format("tied"))
    assert tab.js(ROWS) == ["p0"]
    tab.js(click.format("tied"))
    tab.js(click.format("failed"))
    assert tab.js(ROWS) == ["p2"]
    tab.js(click.format("dropped"))
    assert tab.js(ROWS) == ["p2"] and tab.js("document.querySelector('.chip[data-name=truncated]').disabled")
    assert tab.js("document.getElementById('found').textContent") == "1 of 6 prompts"
    opened("#prompts?in=t1&sort=worst")
    rewards = [[reward(0, prompt, index) for index in range(4)] for prompt in range(6)]
    means = [np.mean([one for one in row if one is not None]) for row in rewards]
    assert tab.js(ROWS) == [f"p{prompt}" for prompt in np.argsort(means, kind="stable")]


@pytest.mark.parametrize(
    ("query", "found"),
    [("名前はまだ", ["p1"]), ("قطة", ["p1"]), ('met "4"', ["p4"]), ("</SCRIPT>", ["p1"]), ("me of 5", ["p5"]),
     ("finish", []), ("word 3", ["p0", "p2", "p3", "p4", "p5"])],
)  # fmt: skip
def test_search_finds_text_in_prompts_and_responses_and_marks_it(tab: Page, opened: Any, query: str, found: list[str]):
    opened("#prompts?in=t1")
    tab.press("/", "/")
    assert tab.js("document.activeElement.id") == "query"
    tab.call("Input.insertText", text=query)
    tab.until(f"document.getElementById('found').textContent.startsWith('{len(found)} of') && "
              "!document.getElementById('progress').textContent")  # fmt: skip
    assert tab.js(ROWS) == found
    if found:
        tab.until("document.querySelector('#detail mark')")
        assert tab.js("document.querySelector('#detail mark').textContent").lower() == query.lower()


def test_the_list_goes_by_keyboard_and_holds_only_what_is_in_sight(tab: Page, tmp_path: Path):
    run = write_run(tmp_path / "many", 3000, 2, 1, text, lambda policy, prompt, index: float(prompt + index))
    tab.open(report.write(run), "#prompts?in=t1")
    tab.js("document.getElementById('list').focus()")
    for key, shown in (("ArrowDown", "p1"), ("ArrowDown", "p2"), ("End", "p2999"), ("PageUp", None), ("Home", "p0")):
        tab.press(key)
        if shown:
            tab.until(f"document.documentElement.dataset.shown === '{shown}'")
        assert tab.js("document.querySelectorAll('.row').length") < 60
        active = tab.js("document.getElementById('list').getAttribute('aria-activedescendant')")
        assert tab.js(each(".row[aria-selected=true]", "one.id")) == [active]
    tab.press("Enter")
    assert tab.js("document.activeElement.id") == "detail" and not tab.errors


def test_figures_are_drawn_and_tell_their_numbers_to_the_arrow_keys(tab: Page, opened: Any):
    opened("#overview")
    tab.until("document.querySelectorAll('figure .canvas > svg').length === 5")
    tab.js("document.querySelector('figure .canvas').focus()")
    for _ in range(3):
        tab.press("ArrowRight")
    told = tab.js("document.querySelector('figure .tip').innerText")
    assert "policy 2" in told and "2.000 ± 0.490" in told
    cells = tab.js("[...document.querySelectorAll('#view-overview .iterations')][0].rows[4].innerText")
    assert cells.split("\t")[:3] == ["2", "2.000 ±0.490", "20.000"]


@pytest.mark.parametrize("width", [390, 1280, 1366])
@pytest.mark.parametrize("view", ["overview", "prompts", "run"])
def test_nothing_is_wider_than_the_window(tab: Page, opened: Any, view: str, width: int):
    tab.shape(width, 800, dark=width == 1280)
    opened(f"#{view}")
    assert tab.js("document.documentElement.scrollWidth") <= width
    tab.shape(1366, 800)


def test_the_difference_of_two_texts_is_the_longest_run_of_words_in_common(tab: Page, opened: Any):
    opened("#overview")
    rng = np.random.default_rng(0)
    for _ in range(20):
        before, after = (list(map(str, rng.choice(list("abcd"), size=rng.integers(0, 12)))) for _ in range(2))
        found = tab.js(f"shared({json.dumps(before)}, {json.dumps(after)})")
        kept = [word for word, same in zip(after, found, strict=True) if same]
        assert len(kept) == longest_in_common(before, after) and is_inside(kept, before)
    dog = JAPANESE.replace("猫", "犬")
    pieces = tab.js(f"difference({json.dumps(JAPANESE)}, {json.dumps(dog)})")
    assert [piece for piece, fresh in pieces if fresh] == ["犬"] and "".join(piece for piece, _ in pieces) == dog


def longest_in_common(a: list[str], b: list[str]) -> int:
    """By trying all subsets of the shorter text."""
    short, long = sorted((a, b), key=len)
    for size in range(len(short), 0, -1):
        if any(is_inside(list(some), long) for some in itertools.combinations(short, size)):
            return size
    return 0


def is_inside(some: list[str], of: list[str]) -> bool:
    """Whether these words stand in that text in this order."""
    rest = iter(of)
    return all(word in rest for word in some)


def test_jobs_without_iterations_have_a_page_too(tab: Page, labelled: Path, tmp_path: Path):
    tab.open(report.write(labelled), "#prompts")
    badges = tab.js(each("article", "[one.querySelector('h3').textContent, one.querySelector('.badge')?.textContent]"))
    assert badges == [["response 3", "chosen"], ["response 1", None], ["response 2", "rejected"]]
    tab.open(labelled / "report.html", "#overview")
    tab.until("document.querySelectorAll('figure svg .violin').length === 2")
    (tmp_path / "run.json").write_text('{"job": "sft", "seed": 0}')
    (tmp_path / "resolved.yaml").write_text("job: sft\n")
    tab.open(report.write(tmp_path), "#prompts")
    assert "no responses" in tab.js("document.querySelector('main').innerText")
    tab.open(tmp_path / "report.html", "#run")
    assert "job: sft" in tab.js("document.querySelector('.recipe').textContent") and not tab.errors


def test_on_paper_every_figure_is_drawn(tab: Page, opened: Any):
    opened("#prompts")
    tab.js("dispatchEvent(new Event('beforeprint'))")
    tab.call("Emulation.setEmulatedMedia", media="print")
    shown = each("#view-overview figure svg, #view-run table", "one.getBoundingClientRect().width > 100")
    assert tab.js(shown).count(True) >= 6
    tab.call("Emulation.setEmulatedMedia", media="")
    tab.js("dispatchEvent(new Event('afterprint'))")
    assert tab.js("document.getElementById('view-overview').hidden")


def test_a_page_that_was_cut_off_says_so(tab: Page, page: bytes, tmp_path: Path):
    torn = tmp_path / "torn.html"
    torn.write_bytes(page[: page.index(b'id="chunk-t1-0"') + 60])
    tab.open(torn, "#overview")
    tab.js("location.hash = '#prompts?in=t1'")
    tab.until("!document.getElementById('trouble').hidden")
    assert tab.js("document.getElementById('trouble').textContent").startswith("Something went wrong")
    tab.errors.clear()
