"""The page of a run: what is in it is read back from its bytes."""

import base64
import fcntl
import hashlib
import itertools
import json
import re
import shutil
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import worlds
from folders import stamp, write_run
from pages import HOSTILE, blocks, facts, make_labelled, make_run, packed_groups, reward, text

from raft.cli import console
from raft.core import records
from raft.core.errors import UserError
from raft.core.records import Drop
from raft.metrics import diagnostics, reward_accuracy
from raft.report.figures.picture import FIGURES
from raft.report.page import groups as report_groups
from raft.report.page import write as report
from raft.store.runs import Run

ASSETS = Path(report.__file__).parent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "mine")


@pytest.fixture(scope="module")
def page(run: Path) -> bytes:
    return report.write(run).read_bytes()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled(tmp_path_factory.mktemp("label") / "pairs")


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


def table(page: bytes, name: str) -> dict[str, str]:
    """What the table under a figure says, by policy and quantity: `1 reward@2`."""
    (figure,) = re.findall(rb'<figure [^>]*id="figure-%s".*?</figure>' % name.encode(), page, re.DOTALL)
    heads, *rows = re.findall(r"<tr>(.*?)</tr>", figure.decode())
    quantities = re.findall(r'<th scope="col">(.*?)</th>', heads)[1:]
    found = {}
    for row in rows:
        (policy,) = re.findall(r'<th scope="row">(\d+)</th>', row)
        cells = [re.sub("<.*?>", "", one) for one in re.findall(r"<td>(.*?)</td>", row)]
        found |= {f"{policy} {quantity}": cell for quantity, cell in zip(quantities, cells, strict=True)}
    return found


def test_best_of_n_is_the_mean_of_the_maximum_over_all_subsets(page: bytes):
    rewards = [[reward(1, prompt, index) for index in range(4)] for prompt in range(6)]
    known = [[one for one in row if one is not None] for row in rewards]
    told = table(page, "best-of-n")
    for n in range(1, 5):
        of_each = [np.mean([max(some) for some in itertools.combinations(row, n)]) for row in known if len(row) >= n]
        assert float(told[f"1 reward@{n}"].split()[0]) == pytest.approx(np.mean(of_each), rel=1e-3)
    assert "1 reward@5" not in told and told["1 reward@4"].endswith(" of 5 prompts")  # one lacks a reward
    flat = [one for row in known for one in row]
    assert float(table(page, "distribution")["1 all/quantile_0.5"]) == pytest.approx(np.median(flat), rel=1e-3)


def test_responses_are_counted_and_those_without_a_reward_too(page: bytes):
    told = {one["key"]: (one["prompts"], one["responses"], one["failed"]) for one in facts(page)["batches"]}
    assert told == {"t1": (6, 24, 1), "t2": (6, 24, 1), "e0": (4, 8, 1), "e1": (4, 8, 1), "e2": (4, 8, 1)}


def test_every_figure_that_raft_plot_can_draw_of_the_run_is_in_the_page_with_its_numbers(run: Path, page: bytes):
    shown = re.findall(rb'<figure [^>]*id="figure-([^"]+)"', page)
    assert [one.decode() for one in shown] == ["reward", "distribution", "best-of-n", "length", "gold"]  # no kl
    assert set(FIGURES) == {*(one.decode() for one in shown), "kl"}
    for name in shown:
        told = table(page, name.decode())
        for one in FIGURES[name.decode()].measure(run).numbers:
            cell = told[f"{one.policy} {one.quantity}"]
            assert cell.split()[0] == f"{one.value:.4g}"
            assert one.low is None or f"[{one.low:.4g}, {one.high:.4g}]" in cell


def test_every_figure_of_a_policy_has_a_label_and_says_what_it_means(tmp_path: Path):
    run = write_run(tmp_path / "mine", 2, 2, 1, text, reward)
    known = {key: column for group in diagnostics.columns().values() for key, column in group.items()}
    told = {key: [] if column.form == "phrases" else 0.5 for key, column in known.items()}
    counts = {"reward/eval_n": 2, "gold/eval_n": 2}
    file = run / "iterations" / "001" / "metrics.json"
    file.write_text(json.dumps({"policy": told | counts, "previous": {}}))
    shown = [one for group in facts(report.write(run).read_bytes())["figures"] for one in group["figures"]]
    assert [one["key"] for one in shown] == [*known] and len(known) > 50
    assert all(one["label"] and one["meaning"] and one["label"] != one["key"] for one in shown)


def test_the_best_policy_is_the_one_that_the_run_calls_best(tmp_path: Path):
    better = [0.0, 3.0, 1.0]
    run = write_run(tmp_path / "mine", 2, 2, 2, text, lambda policy, prompt, index: better[policy] + index)
    for number, mean in enumerate(better):
        file = run / "iterations" / f"{number:03d}" / "metrics.json"
        told = json.loads(file.read_text())
        file.write_text(json.dumps({**told, "policy": {**told["policy"], "reward/eval": mean}}))
    assert facts(report.write(run).read_bytes())["best"] == {"policy": 1, "by": "reward/eval"}


def test_the_gain_is_that_of_the_same_prompts_as_the_run_says_at_its_end(run: Path, page: bytes):
    rewards = np.array([[reward(policy, n, k) for k in range(2)] for policy in (0, 2) for n in range(4)], dtype=float)
    means = np.nanmean(rewards, axis=1).reshape(2, 4)
    change = means[1] - means[0]
    gain = facts(page)["gains"]["reward/eval"]
    assert gain["difference"] == pytest.approx(change.mean())
    assert gain["half_width"] == pytest.approx(1.96 * change.std(ddof=1) / 2, rel=1e-4)
    assert any(f"± {gain['half_width']:.3f}" in line for line in console.verdict(Run(run, 5)))


def test_a_report_of_rewards_has_their_accuracies_as_bars_with_intervals(tmp_path: Path):
    (tmp_path / "run.json").write_text('{"job": "evaluate-reward", "seed": 0}')
    name = "a <b> reward"
    margins = np.array([1.0] * 15 + [-1.0] * 5)
    results = {"hh": {name: reward_accuracy.figures(margins, np.zeros(20), np.ones((20, 2)))}}
    (tmp_path / "accuracy.json").write_text(json.dumps(results))
    page = report.write(tmp_path).read_bytes()
    (shown,) = re.findall(rb'<figure [^>]*id="figure-accuracy".*?</figure>', page, re.DOTALL)
    assert b"<svg" in shown and "a &lt;b&gt; reward" in shown.decode() and b"<b>" not in shown
    low, high = reward_accuracy.wilson(15, 20)
    assert f"75.0 ({100 * low:.1f}–{100 * high:.1f})" in shown.decode()
    assert "95 % interval" in shown.decode() and "chance (50 %)" in shown.decode()


def test_figures_stand_in_the_page_as_its_policy_and_other_figures_allow(page: bytes):
    figures = b"".join(re.findall(rb"<svg.*?</svg>", page, re.DOTALL))
    assert page.count(b"<svg") == 5 and b"style" not in figures
    ids = re.findall(rb' id="([^"]+)"', figures)
    used = set(re.findall(rb'(?:url\(#|href="#)([^")]+)', figures))
    assert used <= set(ids) and len(ids) == len(set(ids)) > 5
    colours = re.findall(rb' (?:fill|stroke)="([^"]+)"', figures)
    assert colours and not [one for one in colours if one[:1] == b"#"]  # each has its counterpart for the dark


def test_the_name_of_a_run_is_shown_and_ends_nothing(run: Path, tmp_path: Path):
    odd = tmp_path / "x\x01\uffff\u202e<script>window.pwned=1<!-- 猫"
    shutil.copytree(run, odd)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = report.write(odd, tmp_path / "page.html").read_bytes()
    assert page.count(b"<script") == 2 + len(blocks(page)) and page.count(b"<!--") == 0
    named = ">x\\x01\ufffd\\u202e&lt;script&gt;window.pwned=1&lt;!-- 猫"
    assert page.decode().count(named) == 5  # above the legend of each figure


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
    assert not outside and b"@import" not in own and not re.search(rb"url\((?!#)", own)


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


@pytest.mark.nightly
def test_memory_does_not_grow_with_the_texts(tmp_path: Path):
    words = np.array([f"{one}{other}" for one in worlds.WORDS for other in worlds.WORDS])

    def story(policy: int, prompt: int, index: int) -> str:
        return " ".join(words[np.random.default_rng([policy, prompt, index]).integers(len(words), size=200)])

    def peak(made: Callable[[], object]) -> int:
        tracemalloc.start()
        made()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peaks, measured, sizes = [], [], []
    for count in (300, 1500):
        run = write_run(tmp_path / f"run{count}", count, 4, 1, story, reward)
        measured.append(peak(lambda run=run: [one.measure(run) for one in FIGURES.values()]))
        for file in run.rglob("scores.jsonl.stamp.json"):
            file.unlink()  # what is not finished is not drawn: that takes a few MB more or less, whatever the run
        peaks.append(peak(lambda run=run: sizes.append(report.write(run).stat().st_size)))
    texts = 4 * len(story(0, 0, 0))  # of a prompt
    for small, large in (peaks, measured):
        assert large - small < 0.1 * texts * 1200, (peaks, measured, sizes)  # rewards, but no text
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
    with pytest.raises(UserError, match="is not a regular file, so nothing is written there; name a file"):
        report.write(run, tmp_path)
    with pytest.raises(UserError, match="there is no such folder"):
        report.write(run, tmp_path / "none" / "x.html")


def test_drops_are_counted_by_reason_whatever_their_numbers(tmp_path: Path):
    run = write_run(tmp_path / "drops", 3, 2, 1, text, reward)
    reason = "{} tokens, more than prompts.max_prompt_length: 512".format
    long = [Drop(f"x{n}", None, "collect", reason(n + 600)).row() for n in range(9)]
    records.write(run / "dropped.jsonl", [*long, Drop("y", None, "collect", "held out for evaluation").row()])
    made = facts(report.write(run).read_bytes())["dropped"]
    told = {(one["where"], one["reason"]): (one["prompts"], one["responses"]) for one in made}
    assert told == {
        ("", "600 tokens, more than prompts.max_prompt_length: 512"): (9, 0),
        ("", "held out for evaluation"): (1, 0),
        ("iterations/001", "no reward"): (0, 1),
    }


def test_pairs_are_marked_as_chosen_and_rejected(labelled: Path):
    stamp(labelled / "scores.jsonl", "score")
    page = report.write(labelled).read_bytes()
    (group,) = packed_groups(page, "g")
    assert group["picks"] == [[2, 1]] and [one["rank"] for one in group["responses"]] == [1, 2, 0]
    assert b"<figure" not in page  # strengths within a prompt say nothing between prompts


def test_a_training_that_diverged_is_reported_too(tmp_path: Path):
    run = write_run(tmp_path / "nan", 2, 2, 1, text, reward)
    file = run / "iterations" / "001" / "metrics.json"
    told = json.loads(file.read_text())
    risen = [{"text": "wow", "now": 0.5, "before": 0.1}]
    told["policy"] |= {"train/loss": float("nan"), "new/figure": 3.0, "new/list": risen}
    file.write_text(json.dumps(told))
    made = facts(report.write(run).read_bytes())
    assert made["rows"][1]["train/loss"] == "nan" and made["figures"][-1]["title"] == "Other figures"
    assert [(one["key"], one["form"]) for one in made["figures"][-1]["figures"]] == [
        ("new/figure", "number"), ("new/list", "phrases"),
    ]  # fmt: skip


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
