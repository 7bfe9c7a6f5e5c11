"""Tokens as HTML: coloured by activation, with every character that cannot be seen replaced by a picture of it.

A context costs little more than its text: silent tokens are plain text, only an active one is a ``<mark>`` with its
value. Colour never stands alone: the strongest token of a context is bold and underlined, and every value is a title.
A character that is cut over several tokens stands once, over a ``<mark>`` for each of them.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

from markupsafe import Markup, escape

from monolex.features.evidence import Context
from monolex.interp.records import Overlay
from monolex.pages.html import number
from monolex.text.characters import BYTE, Piece, joined, pieces

WINDOW = 24
"""Tokens shown on each side of the strongest."""
STEPS = 10
"""Classes a0 to a10 of the style sheet: activation over the feature's maximum, rounded."""
SPACES = 4
"""A run of at least so many spaces is counted rather than drawn."""
PICTURES = {"\n": "↵", "\t": "→", "\r": "␍", "\x7f": "␡", "\xa0": "⍽"}
ATOM = re.compile(rf"[^ !-~]| {{{SPACES},}}")
UNSEEN = re.compile(f"(?:{ATOM.pattern})+")
CACHED = 2**14
"""Texts whose pictures are kept: a page shows the same tokens thousands of times."""
EMPTY = '<i title="no text">∅</i>'
LETTERS = r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]+"
RIGHT_TO_LEFT = re.compile(f"{LETTERS}(?: {LETTERS})*")


def token(text: str) -> Markup:
    """One token on its own: its spaces are visible too; it cannot turn the direction of what follows.

    >>> str(token(" self"))
    '<bdi><i>␣</i>self</bdi>'
    """
    if not text:
        return Markup(EMPTY)
    bare = text.strip(" ")
    left = len(text) - len(text.lstrip(" ")) if bare else len(text)
    right = len(text) - left - len(bare)
    return Markup(f"<bdi>{_blank(left)}{_visible(bare, alone=True)}{_blank(right)}</bdi>")


def context(shown: Context, maximum: float, window: int = WINDOW, *, cut: bool = True) -> Markup:
    """The tokens around the strongest one; ``maximum`` is the feature's largest activation anywhere.

    Of the negative side the strongest is the most negative one, and ``maximum`` is the feature's smallest code.
    ``cut``: what lies beyond the window is the title of the ellipsis that stands for it.
    """
    values, texts, sign = shown.activations, shown.texts, -1 if maximum < 0 else 1
    peak = max(range(len(values)), key=lambda i: sign * values[i])
    silent = sign * values[peak] <= 0
    peak = len(values) // 2 if silent else peak
    # no character is cut at the edges
    inside = [piece for piece in pieces(texts) if piece.stop > peak - window and piece.start <= peak + window]
    start, stop = inside[0].start, inside[-1].stop

    def drawn(piece: Piece) -> str | None:
        if max(sign * value for value in values[piece.start : piece.stop]) <= 0:
            return None
        marks = [
            _mark(texts[i], values[i], maximum, shown.start + i, i == peak) for i in range(piece.start, piece.stop)
        ]
        return _over(piece, marks)

    before = [_ellipsis(texts[:start], cut)] if start else []
    after = [_ellipsis(texts[stop:], cut)] if stop < len(values) else []
    return Markup("".join([*before, *_runs(inside, drawn), *after]))


def ending(texts: Sequence[str], activation: float, maximum: float) -> Markup:
    """Tokens of which a feature is active on the last, and nothing is said of the others.

    >>> str(ending([" of", "."], 2.0, 4.0))
    ' of<mark class="a5 peak" title="2.00">.</mark>'
    """
    *before, last = pieces(texts)
    head = f'<mark class="a{level(activation, maximum)} peak" title="{_bytes(texts[-1])}{number(activation)}">'
    return Markup(f"{_run(''.join(piece.text for piece in before))}{head}{_run(last.text, alone=True)}</mark>")


def overlaid(fragment: Overlay, actual: float, predicted: float) -> Markup:
    """The tokens of a scored fragment: a strip above each is its real activation, one below what was simulated.

    ``actual`` and ``predicted`` are the largest of each, which the classes r0 to r10 and s0 to s10 are relative to.
    """
    said = fragment.predicted or (None,) * len(fragment.actual)
    peak = max(range(len(fragment.actual)), key=lambda i: fragment.actual[i], default=0)
    failed = "" if fragment.predicted else "<i>the simulator failed here</i> "

    def drawn(piece: Piece) -> str | None:
        numbers = range(piece.start, piece.stop)
        if all(fragment.actual[i] <= 0 and not level(said[i] or 0.0, predicted) for i in numbers):
            return None
        return _over(piece, [mark(i) for i in numbers])

    def mark(i: int) -> str:
        real, simulated = fragment.actual[i], said[i]
        above, below = level(real, actual), level(simulated or 0.0, predicted)
        strongest = " peak" if i == peak and real > 0 else ""
        guess = "nothing" if simulated is None else number(simulated)
        title = f"real {number(real)}" + (f", simulated {guess}" if fragment.predicted else "")
        style = " ".join([f"r{above}"] * (real > 0) + [f"s{below}"] * (below > 0)) + strongest
        return f'<mark class="{style}" title="{_bytes(fragment.texts[i])}{title}">'

    return Markup("".join([failed, *_runs(pieces(fragment.texts), drawn)]))


def line(text: str) -> Markup:
    """A sentence in which nothing is invisible, and which cannot turn the direction of what follows.

    >>> str(line("<b>\u202e"))
    '&lt;b&gt;<i>U+202E</i>'
    """
    return Markup(_run(text))


def level(activation: float, maximum: float) -> int:
    """Which of the classes a0 to a10 an activation has; below zero, of n0 to n10, where ``maximum`` is a minimum."""
    return min(STEPS, max(0, round(STEPS * activation / maximum))) if maximum else 0


def plain(text: str) -> str:
    """Text for a title or an SVG: the same pictures without markup; spaces at the ends are visible.

    >>> plain(" self"), plain("\\n    ")
    ('␣self', '↵␣×4')
    """
    bare = text.strip(" ")
    left = len(text) - len(text.lstrip(" ")) if bare else len(text)
    ends = _count(left), _count(len(text) - left - len(bare))
    return ends[0] + ATOM.sub(lambda m: _picture(m[0]) or m[0], bare) + ends[1]


def _runs(shown: Iterable[Piece], drawn: Callable[[Piece], str | None]) -> Iterator[str]:
    """Pieces of text as they are drawn; those that are silent are plain text."""
    # silent neighbours are joined first: pictures of runs of spaces, and text from right to left, reach over tokens
    quiet: list[str] = []
    for piece in shown:
        mark = drawn(piece)
        if mark is None:
            quiet.append(piece.text)
            continue
        yield _run("".join(quiet))
        quiet = []
        yield mark
    yield _run("".join(quiet))


def _over(piece: Piece, marks: Sequence[str]) -> str:
    """A piece of text within its mark; one of several tokens over theirs, side by side, so that each has its title."""
    text = _run(piece.text, alone=True) or EMPTY
    if len(marks) == 1:
        return f"{marks[0]}{text}</mark>"
    return f"<span class=cut>{text}<u>{''.join(f'{mark}</mark>' for mark in marks)}</u></span>"


def _mark(text: str, value: float, maximum: float, position: int, strongest: bool) -> str:
    """The beginning of a token's mark."""
    style = f"{'n' if maximum < 0 else 'a'}{level(value, maximum)}"
    head = f' class="{style} peak"' if strongest else f" class={style}" if value * maximum > 0 else ""
    return f'<mark{head} title="{_bytes(text)}{number(value)} @{position}">'


@lru_cache(CACHED)
def _bytes(text: str) -> str:
    """Begins the title of a token that holds a part of a character: which one."""
    return f"{escape(plain(text))}: " if BYTE.search(text) else ""


@lru_cache(CACHED)
def _run(text: str, *, alone: bool = False) -> str:
    """Text in which nothing is invisible; words that run from right to left are isolated from what is around them."""
    shown = _visible(text, alone=alone)
    return shown if shown.isascii() else RIGHT_TO_LEFT.sub(r"<bdi>\g<0></bdi>", shown)


def _visible(text: str, *, alone: bool = False) -> str:
    """Escaped text with pictures; ``alone``: an accent at its start gets a base of its own to stand on."""
    base = "◌" if alone and text and unicodedata.combining(text[0]) else ""
    return base + UNSEEN.sub(_pictures, str(escape(text)))


def _pictures(unseen: re.Match[str]) -> str:
    parts = [(_picture(atom), atom) for atom in ATOM.findall(unseen[0])]
    shown = "".join(f"<i>{picture}</i>" if picture else atom for picture, atom in parts)
    return shown.replace("</i><i>", "")


def _picture(unseen: str) -> str:
    """What stands for a character (or a run of spaces) that cannot be seen; nothing for one that can."""
    if unseen[0] == " ":
        return _count(len(unseen))
    if unseen in PICTURES:
        return PICTURES[unseen]
    if unseen < " ":
        return chr(0x2400 + ord(unseen))
    kind = unicodedata.category(unseen)
    return f"U+{ord(unseen):04X}" if kind in ("Cc", "Cf", "Co", "Cn", "Zl", "Zp") else "␣" if kind == "Zs" else ""


def _count(spaces: int) -> str:
    return "␣" * spaces if spaces < SPACES else f"␣×{spaces}"


def _blank(spaces: int) -> str:
    return f"<i>{_count(spaces)}</i>" if spaces else ""


def _ellipsis(texts: Sequence[str], cut: bool) -> str:
    title = f' title="{escape(plain(joined(texts)))}"' if cut else ""
    return f"<i{title}>…</i>"
