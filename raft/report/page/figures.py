"""The figures of a run for its report: each as a picture, with a sentence on it and its numbers as a table."""

import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from raft.core.run_paths import RunPaths
from raft.metrics import reward_accuracy
from raft.report.figures import inline
from raft.report.figures.accuracy_bars import TITLE, accuracy_figure
from raft.report.figures.picture import FIGURES
from raft.report.figures.table import Measured, Number, Plot, recipes

WIDE = 600  # points; a wider picture takes the whole width of the page


class Card(NamedTuple):
    """A figure of the page: its name, its title, a sentence on it, the picture, and its numbers in HTML."""

    name: str
    title: str
    shows: str
    picture: ElementTree.Element
    table: str

    @property
    def is_wide(self) -> bool:
        return float(self.picture.attrib["viewBox"].split()[2]) > WIDE

    def html(self, is_whole: bool) -> str:
        kind = " ".join(["card", *["whole"] * is_whole, *["wide"] * self.is_wide])
        self.picture.attrib |= {"role": "img", "aria-label": f"{self.title}; its numbers are below"}
        return (
            f'<figure class="{kind}" id="figure-{self.name}"><figcaption>'
            f'<h3>{self.title}</h3><p class="quiet">{escape(self.shows)}</p></figcaption>'
            f'<div class="canvas" tabindex="0">{ElementTree.tostring(self.picture, "unicode")}</div>'
            f'<details><summary>Numbers</summary><div class="scroll" tabindex="0">{self.table}</div></details></figure>'
        )


def figures(folder: Path) -> str:
    """HTML of all figures of `raft plot` that the run has numbers for, and of the accuracies of rewards.

    They stand in two columns; a wide one takes both, and so does the first where the others could not be paired.
    """
    made = [(plot, plot.measure(folder)) for plot in FIGURES.values()]
    cards = [_plotted(plot, measured) for plot, measured in made if measured.numbers]
    if (results := RunPaths(folder).accuracy).is_file():
        cards.append(_accuracies(json.loads(results.read_text(encoding="utf-8"))))
    odd = [card.is_wide for card in cards].count(False) % 2
    return "\n".join(card.html(card.is_wide or (at == 0 and bool(odd))) for at, card in enumerate(cards))


def _plotted(plot: Plot, measured: Measured) -> Card:
    picture = inline.element(plot.name, lambda: plot.draw(recipes([measured], plot.missing)))
    quantities = list(dict.fromkeys(one.quantity for one in measured.numbers))
    known = {(one.policy, one.quantity): one for one in measured.numbers}
    rows = {
        str(policy): [_cell(known.get((policy, one))) for one in quantities]
        for policy in sorted({one.policy for one in measured.numbers})
    }
    return Card(plot.name, plot.title, plot.shows, picture, _table(["policy", *quantities], rows))


def _accuracies(results: Mapping[str, Mapping[str, reward_accuracy.Figures]]) -> Card:
    """The bars of a job: evaluate-reward, with a row for each set and a column for each reward."""
    rewards = list(dict.fromkeys(reward for one in results.values() for reward in one))
    rows = {
        name: [escape(reward_accuracy.cell(of_set.get(reward))) for reward in rewards]
        for name, of_set in reward_accuracy.rows(results).items()
    }
    return Card(
        "accuracy",
        TITLE,
        "The share of pairs in which the chosen response has the higher reward: a reward whose interval contains 50 % "
        "is not known to be better than chance.",
        inline.element("accuracy", lambda: accuracy_figure(results)),
        _table(["set", *rewards], rows),
    )


def _table(head: Iterable[str], rows: Mapping[str, Iterable[str]]) -> str:
    """Rows of cells, which are HTML already, by their names."""
    heads = "".join(f'<th scope="col">{escape(one)}</th>' for one in head)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for name, cells in rows.items()
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _cell(one: Number | None) -> str:
    if one is None:
        return ""
    interval = "" if one.low is None else f" [{one.low:.4g}, {one.high:.4g}]"
    partial = f" of {one.prompts} prompts" if one.missing and one.prompts is not None else ""
    return f"{one.value:.4g}<small>{interval}{partial}</small>"
