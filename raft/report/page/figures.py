"""The figures of a run for its report: each as a picture, with a sentence on it and its numbers as a table."""

from html import escape
from pathlib import Path
from xml.etree import ElementTree

from raft.report.figures import inline
from raft.report.figures.picture import FIGURES
from raft.report.figures.table import Measured, Number, Plot, recipes

WIDE = 600  # points; a wider picture takes the whole width of the page


def figures(folder: Path) -> str:
    """HTML of all figures of `raft plot` that the run has numbers for.

    They stand in two columns; a wide one takes both, and so does the first where the others could not be paired.
    """
    made = [(plot, plot.measure(folder)) for plot in FIGURES.values()]
    drawn = [(plot, measured, _picture(plot, measured)) for plot, measured in made if measured.numbers]
    wide = [float(picture.attrib["viewBox"].split()[2]) > WIDE for _, _, picture in drawn]
    if wide.count(False) % 2:
        wide[0] = True
    return "\n".join(
        _figure(*one, kind="card whole" if whole else "card") for one, whole in zip(drawn, wide, strict=True)
    )


def _picture(plot: Plot, measured: Measured) -> ElementTree.Element:
    picture = inline.element(plot.name, lambda: plot.draw(recipes([measured], plot.missing)))
    picture.attrib |= {"role": "img", "aria-label": f"{plot.title}; its numbers stand below"}
    return picture


def _figure(plot: Plot, measured: Measured, picture: ElementTree.Element, kind: str) -> str:
    numbers = f'<div class="scroll" tabindex="0">{_table(measured)}</div>'
    return (
        f'<figure class="{kind}" id="figure-{plot.name}"><figcaption><h3>{plot.title}</h3>'
        f'<p class="quiet">{escape(plot.shows)}</p></figcaption>'
        f'<div class="canvas" tabindex="0">{ElementTree.tostring(picture, "unicode")}</div>'
        f"<details><summary>Numbers</summary>{numbers}</details></figure>"
    )


def _table(measured: Measured) -> str:
    """A row for each policy and a column for each quantity, with its interval where it has one."""
    quantities = list(dict.fromkeys(one.quantity for one in measured.numbers))
    known = {(one.iteration, one.quantity): one for one in measured.numbers}
    head = "".join(f'<th scope="col">{escape(one)}</th>' for one in ("policy", *quantities))
    rows = "".join(
        f'<tr><th scope="row">{policy}</th>' + "".join(_cell(known.get((policy, one))) for one in quantities) + "</tr>"
        for policy in sorted({one.iteration for one in measured.numbers})
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(one: Number | None) -> str:
    if one is None:
        return "<td></td>"
    interval = "" if one.low is None else f" [{one.low:.4g}, {one.high:.4g}]"
    partial = f" of {one.prompts} prompts" if one.missing and one.prompts is not None else ""
    return f"<td>{one.value:.4g}<small>{interval}{partial}</small></td>"
