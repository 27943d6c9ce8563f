"""A figure as an SVG element of a page, in colours for light and for dark.

What matplotlib says in style attributes, which the policy of a careful page forbids, is said in attributes of their
own. Texts stay texts: they can be selected, searched and read aloud, and take the font of the page.
"""

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

from raft.report.figures.style import STYLE
from raft.report.palette import MEANINGS, Colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
# XML has no place for these two; control characters have already become visible in the titles of recipes
NO_XML = {0xFFFE: "\ufffd", 0xFFFF: "\ufffd"}
DARK = {one.light: one.dark for colour in MEANINGS.values() for one in (colour, colour.tint)}
NUMBERS = ("d", "x", "y", "transform")
SHEET = 0.014  # luminance of the dark sheet that figures lie on
FLARE = 0.15  # WCAG 2.1 has 0.05, and takes dim colours on a dark sheet for clearer than they are
LUMINANCE, GAMMA = np.array([0.2126, 0.7152, 0.0722]), 2.2  # of red, green and blue


def element(name: str, draw: Callable[[], "Figure"]) -> ElementTree.Element:
    """The figure that `draw` makes with STYLE in force; equal figures give equal elements.

    `name` keeps the ids of several figures in one page apart.
    """
    from matplotlib import rc_context

    own: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "axes.facecolor": "none", "figure.facecolor": "none"}
    content = io.BytesIO()
    with rc_context({**STYLE, **own}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the page has fonts of its own
        draw().savefig(content, format="svg", metadata=NO_METADATA)
    root = ElementTree.fromstring(content.getvalue().decode().translate(NO_XML))
    for parent in list(root.iter()):
        for style in [one for one in parent if one.tag.endswith("}style")]:
            parent.remove(style)
    for one in root.iter():
        _rewrite(one)
    root.attrib |= {"stroke-linejoin": "round", "font-family": "sans-serif", "fill": _both("#000000")}
    return root


def _rewrite(one: ElementTree.Element) -> None:
    """Without name spaces, styles, indentation, ids that nothing refers to, and digits that nobody sees."""
    one.tag = one.tag.rpartition("}")[2]
    one.text, one.tail = (one.text if one.tag == "text" else None), None
    styles = dict(part.split(": ", 1) for part in one.attrib.pop("style", "").split("; ") if part)
    styles.pop("font-family", None)
    one.attrib = {key.rpartition("}")[2]: value for key, value in one.attrib.items()} | styles
    if one.tag == "g":
        one.attrib.pop("id", None)
    for key in {"fill", "stroke"} & one.attrib.keys():
        if one.attrib[key].startswith("#"):
            one.attrib[key] = _both(one.attrib[key])
    for key in one.attrib.keys() & NUMBERS:
        one.attrib[key] = " ".join(
            re.sub(r"\d+\.\d+", lambda found: f"{round(float(found[0]), 2):g}", one.attrib[key]).split()
        )


def _both(colour: str) -> str:
    return Colour(colour, DARK.get(colour) or dark(colour)).css()


def dark(colour: str) -> str:
    """The colour that stands out from the dark sheet as much as `colour` (#rrggbb) does from white.

    Of the same hue, and of the same contrast, (a + FLARE) / (b + FLARE) of both luminances.
    """
    light = (np.array(list(bytes.fromhex(colour[1:]))) / 255) ** GAMMA
    before = float(LUMINANCE @ light)
    wanted = min((1 + FLARE) * (SHEET + FLARE) / (before + FLARE) - FLARE, 1.0)
    light = light * min(wanted / max(before, 1e-9), 1 / max(float(light.max()), 1e-9))
    reached = float(LUMINANCE @ light)
    light = light + (1 - light) * (wanted - reached) / max(1 - reached, 1e-9)  # what is missing, in white
    return f"#{bytes(np.round(255 * light.clip(0, 1) ** (1 / GAMMA)).astype(np.uint8)).hex()}"
