"""The colours of figures and report: one place for both, and told apart by every kind of eye."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from pages import make_run

from raft.report import palette
from raft.report.figures import distribution, lines
from raft.report.page import write

# What remains of linear red, green and blue without one kind of cones: Machado, Oliveira and Fernandes 2009, severity 1
EYES = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
# OKLab (Ottosson 2020), from linear sRGB
CONES = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
LAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip


def linear(colour: str) -> np.ndarray:
    parts = np.array(list(bytes.fromhex(colour[1:]))) / 255
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """As WCAG 2.1 defines it, from 1 to 21."""
    bright, dim = sorted((float([0.2126, 0.7152, 0.0722] @ linear(colour)) for colour in (one, other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("sheet", [0, 1], ids=palette.Colour._fields)
@pytest.mark.parametrize("eye", EYES)
def test_colours_of_different_meaning_are_told_apart_by_every_kind_of_eye(eye: str, sheet: int):
    seen = {name: LAB @ np.cbrt(CONES @ (EYES[eye] @ linear(one[sheet])).clip(0, 1)) for name, one in
            palette.MEANINGS.items()}  # fmt: skip
    near = {pair: np.linalg.norm(seen[pair[0]] - seen[pair[1]]) for pair in itertools.combinations(seen, 2)}
    assert min(near.values()) >= 0.119, min(near, key=lambda pair: near[pair])


@pytest.mark.parametrize("sheet", [0, 1], ids=palette.Colour._fields)
def test_colours_stand_out_from_the_sheet(sheet: int):
    found = {name: contrast(one[sheet], palette.SHEET[sheet]) for name, one in palette.MEANINGS.items()}
    assert all(value >= (2.6 if name == "gold" else 3) for name, value in found.items()), found


def test_figures_and_page_have_the_colours_of_the_palette_and_none_of_their_own(tmp_path: Path):
    page = write.write(make_run(tmp_path / "mine")).read_text()
    figures = dict(re.findall(r'id="figure-([a-z-]+)">(.*?)</figure>', page, re.DOTALL))
    for name, colour in palette.MEANINGS.items():
        assert page.count(f"--{name}: {colour.css()};") == 1
    for metric, line in lines.REWARDS.items():
        assert f'stroke="{line.colour.css()}"' in figures["reward"], metric
    for colour in (palette.TRAINING, palette.SELECTED):
        assert colour.css() in figures["distribution"] and colour.tint.css() in figures["distribution"]
    assert palette.FIRST_POLICY.css() in figures["best-of-n"]
    sources = [
        *(Path(write.__file__).parent / name for name in ("page.css", *write.SCRIPTS)),
        *Path(lines.__file__).parent.glob("*.py"),
    ]
    own = {one for file in sources for one in re.findall(r"#[0-9a-f]{6}\b", file.read_text().lower())}
    assert not own & {part for colour in palette.MEANINGS.values() for part in colour}
    used = {name for file in sources[:5] for name in re.findall(r"var\(--([a-z-]+)\)", file.read_text())}
    assert {*palette.MEANINGS} - used == set()


def test_the_same_meaning_has_the_same_colour_in_every_figure():
    assert distribution.LOOKS["all"]["edgecolor"] == lines.REWARDS["reward/mean"].colour.light
    assert distribution.LOOKS["winners"]["edgecolor"] == lines.REWARDS["reward/best_of_k"].colour.light
    assert lines.LENGTHS["eval/tokens"].colour == lines.REWARDS["reward/eval"].colour
    assert lines.LENGTHS["response/tokens"].colour == lines.REWARDS["reward/mean"].colour
