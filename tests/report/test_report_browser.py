"""The page of a run in a real browser: what it shows and what it does."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import FOUND, Page, browser
from folders import write_run
from pages import ARABIC, HOSTILE, JAPANESE, make_labelled, make_run, packed_groups, reward, text

from raft.cli import status
from raft.metrics import reward_accuracy
from raft.metrics.diagnostics import columns
from raft.report.page import write as report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "mine")


@pytest.fixture(scope="module")
def page(run: Path) -> bytes:
    return report.write(run).read_bytes()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled(tmp_path_factory.mktemp("label") / "pairs")


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
    assert HOSTILE in tab.js("document.querySelector('#warnings').textContent")
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


def test_figures_are_drawn_for_light_and_dark_and_stand_over_their_numbers(tab: Page, opened: Any):
    painted = each("#figures svg", "[getComputedStyle(one).fill, one.getBBox().width > 300]")
    for dark, ink in ((False, "rgb(0, 0, 0)"), (True, "rgb(255, 255, 255)")):
        tab.shape(1366, 800, dark)
        opened("#overview")
        assert tab.js(painted) == [[ink, True]] * 5
    tab.shape(1366, 800)
    assert tab.js("document.querySelector('#figure-reward table').checkVisibility()") is False
    tab.js("document.querySelector('#figure-reward summary').click()")
    told = tab.js("document.querySelector('#figure-reward tbody').rows[2].innerText").split("\t")
    rewards = [reward(2, prompt, index) for prompt in range(4) for index in range(2)]
    means = [np.mean([one for one in rewards[at : at + 2] if one is not None]) for at in range(0, 8, 2)]
    assert told[0] == "2" and float(told[3].split()[0]) == pytest.approx(np.mean(means), rel=1e-3)
    cells = tab.js("[...document.querySelectorAll('#view-overview .iterations')][0].rows[4].innerText")
    assert cells.split("\t")[:3] == ["2 ★", "2.000 ±0.490", "20.000"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run whose three policies have every figure, and which took longer than its artifacts did."""
    run = make_run(tmp_path_factory.mktemp("whole") / "mine")
    values = {"reward": -12.345, "share": 0.123, "number": 123.4, "count": 12345}
    phrase = {"text": HOSTILE, "before": 0.1, "now": 0.5}
    known = {key: column for group in columns().values() for key, column in group.items()}
    told = {key: values.get(column.form, [phrase]) for key, column in known.items()}
    told |= {f"{key}_se": 1.234 for key in ("reward/eval", "gold/eval", "kl/first", "entropy/token")}
    for number in range(3):
        row = {**told, "reward/eval": number - 20.5, "reward/eval_n": 4, "gold/eval_n": 4}
        (run / f"iterations/{number:03d}/metrics.json").write_text(json.dumps({"policy": row, "previous": {}}))
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "processes": [{"began": 1.7e9 - 2000, "ended": 1.7e9 + 50}]}))
    return report.write(run)


def test_the_table_of_iterations_is_whole_at_1366_pixels_and_every_other_figure_is_below_it(tab: Page, whole: Path):
    tab.shape(1366, 900)
    tab.open(whole, "#overview")
    table = "document.querySelector('.iterations').parentElement"
    assert tab.js(f"{table}.scrollWidth <= {table}.clientWidth")
    assert tab.js("document.querySelectorAll('.iterations')[0].rows[1].cells.length") > 12
    assert tab.js("document.querySelector('.every').checkVisibility()") is False
    tab.js("document.querySelector('.every').closest('details').querySelector('summary').click()")
    rows = tab.js(each(".every tbody tr:not(.group)", "[one.querySelector('small').innerText, one.cells.length]"))
    told = {text.rpartition("; ")[2]: text.rpartition("; ")[0] for text, _ in rows}
    numbers = {key: column for group in columns().values() for key, column in group.items() if column.form != "phrases"}
    assert told == {key: column.meaning for key, column in numbers.items()} and {cells for _, cells in rows} == {4}
    assert HOSTILE in tab.js("document.querySelector('.risen').textContent") and not tab.errors


def test_the_tile_of_checks_tells_warnings_from_what_is_to_watch_as_the_status_does(tab: Page, opened: Any, run: Path):
    found = status.summary(run)
    warned, watched = len(found["warnings"]), len(found["watch"])
    opened("#overview")
    tile = tab.js("[...document.querySelectorAll('.tile')].find((one) => one.innerText.includes('Checks')).innerText")
    parts = [f"{warned} warning{'s' * (warned > 1)}"] * bool(warned) + [f"{watched} to watch"] * bool(watched)
    assert warned and re.findall(r"\d+ (?:warnings?|to watch)", tile) == parts
    levels = tab.js(each("#warnings b", "one.textContent"))
    assert levels == ["warning: "] * warned + ["watch: "] * watched


def test_results_come_before_warnings_and_the_best_policy_has_its_legend(tab: Page, whole: Path):
    tab.open(whole, "#overview")
    order = each("#view-overview .tiles, #warnings, #figures, .iterations", "one.id || one.className")
    assert tab.js(order)[:4] == ["tiles", "warnings", "figures", "iterations"]
    tab.js("document.querySelector('.tile a').click()")
    assert 0 <= tab.js("document.getElementById('warnings').getBoundingClientRect().top") < 800
    assert tab.js(each(".iterations:not(.every) tr.best", "one.cells[0].innerText")) == ["2 ★"]
    assert "★ marks the best policy" in tab.js("document.querySelector('.iterations').closest('.card').innerText")


def test_the_time_of_the_overview_is_the_sum_of_the_view_of_the_run(tab: Page, whole: Path):
    tab.open(whole, "#overview")
    tiles = tab.js(each(".tile", "[...one.children].map((part) => part.innerText)"))
    (time,) = [value for label, value, *_ in tiles if label == "Time"]
    tab.open(whole, "#run")
    row = tab.js(each("#view-run tfoot td", "one.innerText"))
    assert time == row[-1] and "min" in time


def test_no_number_is_parted_from_its_unit(tab: Page, whole: Path):
    for view in ("overview", "run"):
        tab.open(whole, f"#{view}")
        told = tab.js(f"document.getElementById('view-{view}').querySelectorAll('.tile, td').length")
        assert told > 20
        cells = tab.js(each(f"#view-{view} :is(.tile, td)", "one.textContent"))
        parted = [cell for cell in cells if re.search(r"\d (?:%|s\b|min\b|h\b)|± |\d ±(?!\d)", cell)]
        assert not [cell for cell in parted if "%" in cell or "±" in cell or " min" in cell]


@pytest.mark.parametrize("view", ["overview", "run"])
def test_on_a_phone_text_is_inside_and_every_bar_is_seen(tab: Page, whole: Path, view: str):
    tab.shape(390, 844)
    tab.open(whole, f"#{view}")
    inside = f"#view-{view} :is(p, h3, dd, .texts td, figure:not(.wide) svg)"
    assert max(tab.js(each(inside, "one.getBoundingClientRect().right"))) <= 390
    if view == "run":
        width = "getBoundingClientRect().width"
        bars = tab.js(each(".stack", f"one.{width}"))
        painted = tab.js(each(".stack", f"[...one.children].reduce((sum, part) => sum + part.{width}, 0)"))
        assert len(bars) == 4 and min(bars) >= 3 and painted == pytest.approx(bars, abs=0.5)
    tab.shape(1366, 800)


def test_accuracies_of_rewards_have_their_tables_below_the_bars(tab: Page, tmp_path: Path):
    (tmp_path / "run.json").write_text('{"job": "evaluate-reward", "seed": 0}')
    margins = np.array([1.0] * 15 + [-1.0] * 5)
    results = {"hh": {"a|<b>": reward_accuracy.figures(margins, np.zeros(20), np.ones((20, 2)))}}
    (tmp_path / "accuracy.json").write_text(json.dumps(results))
    (tmp_path / "accuracy.md").write_text(reward_accuracy.table(results))
    tab.open(report.write(tmp_path), "#overview")
    assert tab.js("document.querySelector('#figure-accuracy svg').getBBox().width > 200")
    low, high = reward_accuracy.wilson(15, 20)
    first = tab.js("document.querySelectorAll('#view-overview .card table')[1].innerText").split()
    assert first == ["set", "a|<b>", "hh", "75.0", f"({100 * low:.1f}–{100 * high:.1f})"] and not tab.errors


def test_a_figure_opens_as_a_picture_of_its_own(tab: Page, opened: Any):
    opened("#overview")
    tab.call("Page.navigate", url=tab.js("document.querySelector('#figure-gold figcaption a').href"))
    tab.until("document.documentElement?.tagName === 'svg'")
    assert "both rewards of each policy" in tab.js("document.documentElement.textContent")


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
    assert tab.js("document.querySelectorAll('figure, #figures').length") == 0
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
