"""Colours by meaning, for the figures and for the page of `raft report`; the colour-blind can tell them apart.

A colour of MEANINGS means the same thing everywhere. Where several runs are in one figure, colour tells the runs apart
(SERIES), and policies in their order have a gradient (raft/report/figures/style.py).
"""

from typing import NamedTuple


class Colour(NamedTuple):
    """A colour on white, and its counterpart on the dark sheet of the page (#rrggbb)."""

    light: str
    dark: str

    @property
    def tint(self) -> "Colour":
        """A pale area of the colour: a quarter of it on the sheet."""
        return Colour(*(_mixed(*both) for both in zip(self, SHEET, strict=True)))

    def css(self) -> str:
        """The colour as a value of CSS and of SVG, which follows the reader's choice of light or dark."""
        return f"light-dark({self.light}, {self.dark})"


def _mixed(colour: str, sheet: str) -> str:
    both = zip(bytes.fromhex(colour[1:]), bytes.fromhex(sheet[1:]), strict=True)
    return f"#{bytes((part + 3 * ground) // 4 for part, ground in both).hex()}"


SHEET = Colour("#ffffff", "#1c2024")  # what figures and cards lie on
# Searched for in OKLab: with any kind of colour blindness (Machado et al. 2009) two of them are 0.12 apart at least
TRAINING = Colour("#3292f0", "#17b7fc")  # training prompts, and all K responses to them
SELECTED = Colour("#6f2f67", "#a8597a")  # the winners: what is learned from
HELD_OUT = Colour("#288269", "#9ff8d9")
GOLD = Colour("#d68e02", "#efbc4b")
FIRST_POLICY = Colour("#2a2721", "#a6a49c")
BEST_POLICY = Colour("#5831ae", "#8660dc")
WARNING = Colour("#cd3f05", "#eb5512")
MEANINGS = {
    "training": TRAINING,
    "selected": SELECTED,
    "held-out": HELD_OUT,
    "gold": GOLD,
    "first-policy": FIRST_POLICY,
    "best-policy": BEST_POLICY,
    "warning": WARNING,
}
# Okabe and Ito's colours without the yellow that paper swallows
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def variables() -> str:
    """The colours of MEANINGS, and of the sheet, as variables of CSS."""
    return "".join(f" --{name}: {colour.css()};" for name, colour in {"sheet": SHEET, **MEANINGS}.items())
