"""Features made by hand, with what is true of them and what only sounds so; nothing here needs a model.

All features are functions of tokens and run over the same short texts, so that what is said of one can be tried on
another. Of each one explanation is true. The others are near misses, too broad, too narrow, or fit another feature.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from monolex.interp.records import Examples, Explanation, Fragment
from monolex.interp.rules import ANY, Line, Rule, Slot
from monolex.interp.simulate.sanity_texts import TEXTS, pieces, vocabulary

EXPLAINED, TOP, RANDOM, SILENT = 3, 4, 8, 5
"""Fragments of each kind, at most."""

Activation = Callable[[Sequence[str], int], float]
"""A feature: its activation on the token at a place of a text."""


class Case(NamedTuple):
    """A feature that is known."""

    name: str
    """What tables call it."""
    activation: Activation
    """The feature itself, as a program of its own: not one of the rules that are scored."""
    true: Explanation
    """What it responds to."""
    false: tuple[Explanation, ...]
    """What one could take it for."""


def examples(number: int, case: Case) -> Examples:
    """What explainers would be shown of a feature, and the fragments that its explanations are scored on.

    Of the texts with the feature, the strongest first, every other one is for explaining and the next for scoring,
    until there are enough. Unlike a run's, the random fragments may be without the feature: as few as they are here, a
    too broad explanation would else cost nothing. ``number`` is what the feature is called.
    """
    ids = {text: token for token, text in enumerate(vocabulary())}
    fragments, row = [], 0
    for doc, text in enumerate(TEXTS):
        texts = pieces(text)
        activations = np.array([case.activation(texts, at) for at in range(len(texts))], np.float32)
        fragments.append(Fragment(doc, row, tuple(ids[piece] for piece in texts), texts, activations))
        row += len(texts)
    loud = [fragment for fragment in fragments if fragment.maximum > 0]
    loud.sort(key=lambda fragment: -float(fragment.activations.sum()))
    explain, top = loud[0 : 2 * EXPLAINED : 2], loud[1 : 2 * TOP : 2]
    rest = [fragment for fragment in fragments if fragment not in explain and fragment not in top]
    random = rest[:: max(1, len(rest) // RANDOM)][:RANDOM]
    quiet = [fragment for fragment in rest if fragment.maximum <= 0 and fragment not in random][: 2 * SILENT]
    maximum = max(fragment.maximum for fragment in explain)
    return Examples(number, tuple(explain), tuple(quiet[::2]), tuple(top), tuple(random), tuple(quiet[1::2]), maximum)


def one_of(*texts: str) -> Slot:
    """A place for some tokens."""
    return Slot(frozenset(texts))


def like(pattern: str) -> Slot:
    """A place for the tokens of the suite that a regular expression matches as a whole."""
    return Slot(frozenset(text for text in vocabulary() if re.fullmatch(pattern, text)))


def line(value: float, *slots: Slot) -> Line:
    """A line of a rule; the last place is that of the token in question."""
    return Line(slots, value)


def says(text: str, *lines: Line) -> Explanation:
    """An explanation in words and as a rule."""
    return Explanation("by hand", text, Rule(lines))


def _back(texts: Sequence[str], at: int, places: int) -> str:
    """The token so many places before; empty where the text begins."""
    return texts[at - places] if at >= places else ""


def _word(texts: Sequence[str], at: int, places: int = 0) -> str:
    """The same in lower case, without the space before it."""
    return _back(texts, at, places).strip(" ").lower()


def _third_in_list(texts: Sequence[str], at: int) -> float:
    commas = [_back(texts, at, places) == "," for places in (1, 3, 5)]
    return 6.0 * (commas == [True, True, False])


def _everywhere(texts: Sequence[str], at: int) -> float:
    return 4.0 if _word(texts, at).isalpha() else 0.0 if texts[at] == "\n" else 2.0


_BREAK, _COMMA, _NUMBER = one_of("\n"), one_of(","), Slot(classes=frozenset({"digits"}))
_LETTERS, _CAPITALISED, _CITY = (like(p) for p in (r" ?[A-Za-z]+", r" ?[A-Z][a-z]*", " (London|Paris|Rome|York|Hull)"))
_SIGNS, _ENDS, _OPENING = like(r" ?[^\w\s]"), like(r" ?[.!?]"), like(r" ?[(\[{]")
_PAGE, _BETWEEN = like("(?i) ?page"), like("(?i) ?between")
_HOT, _WARM, _MILD = like("(?i) ?hot"), like("(?i) ?warm"), like("(?i) ?mild")

SUITE = (
    Case(
        "one token",
        lambda texts, at: 9.0 * (texts[at] == " river"),
        says('the word "river", in lower case', line(9, one_of(" river"))),
        (
            says(
                "waters of any kind, such as river, stream, lake or sea", line(9, like("(?i) (river|stream|lake|sea)"))
            ),
            says('the word "stream"', line(9, one_of(" stream"))),
            says('the name "River", with a capital', line(9, one_of(" River"))),
            says('the word "the"', line(9, like("(?i) ?the"))),
        ),
    ),
    Case(
        "numbers",
        lambda texts, at: 6.0 * texts[at].strip(" ").isdigit(),
        says("numbers written in digits, of any length", line(6, _NUMBER)),
        (
            says("years: numbers of four digits", line(6, like(r" ?\d{4}"))),
            says("numbers written as words, such as two, four or seven", line(6, like("(?i) ?(one|two|four|seven)"))),
            says('the number right after the word "page"', line(6, _PAGE, _NUMBER)),
            says("punctuation marks", line(6, _SIGNS)),
        ),
    ),
    Case(
        "capitals",
        lambda texts, at: 5.0 * texts[at].strip(" ")[:1].isupper(),
        says("words that begin with a capital letter", line(5, _CAPITALISED)),
        (
            says("names of people, such as Anna, Emma or Tom", line(5, like(" ?(Anna|Paul|Emma|Tom)"))),
            says("the first word after a full stop, question mark or exclamation mark", line(5, _ENDS, _LETTERS)),
            says("words in lower case", line(5, like(" ?[a-z]+"))),
            says("names of cities, such as London, Paris or York", line(5, _CITY)),
        ),
    ),
    Case(
        "two tokens in a row",
        lambda texts, at: 8.0 * (texts[at] == " York" and _back(texts, at, 1).strip(" ") == "New"),
        says('the word "York" where it comes right after "New"', line(8, like(" ?New"), one_of(" York"))),
        (
            says('the word "York", whatever comes before it', line(8, one_of(" York"))),
            says('the word "New"', line(8, like(" ?New"))),
            says("names of cities, such as London, Paris or York", line(8, _CITY)),
            says('the token right after "York"', line(8, one_of(" York"), ANY)),
        ),
    ),
    Case(
        "one token apart",
        lambda texts, at: 7.0 * (texts[at] == " and" and _word(texts, at, 2) == "between"),
        says('the word "and" two tokens after "between"', line(7, _BETWEEN, ANY, one_of(" and"))),
        (
            says('the word "and", wherever it stands', line(7, one_of(" and"))),
            says('the word "between"', line(7, _BETWEEN)),
            says('the token right after "between"', line(7, _BETWEEN, ANY)),
            says('the word "and" right after a comma', line(7, _COMMA, one_of(" and"))),
        ),
    ),
    Case(
        "third in a list",
        _third_in_list,
        says(
            "the token right after the second comma of a list that has one token between commas",
            line(0, _COMMA, ANY, _COMMA, ANY, _COMMA, ANY),
            line(6, _COMMA, ANY, _COMMA, ANY),
        ),
        (
            says("the token right after any comma", line(6, _COMMA, ANY)),
            says("commas", line(6, _COMMA)),
            says("the second comma of a list that has one token between commas", line(6, _COMMA, ANY, _COMMA)),
            says('the word "and" right after a comma', line(6, _COMMA, one_of(" and"))),
        ),
    ),
    Case(
        "opening brackets",
        lambda texts, at: 5.0 * (texts[at].strip(" ") in ("(", "[", "{")),
        says("opening brackets: round, square and curly ones", line(5, _OPENING)),
        (
            says("closing brackets", line(5, like(r" ?[)\]}]"))),
            says("opening square brackets alone", line(5, like(r" ?\["))),
            says("the token right after an opening bracket", line(5, _OPENING, ANY)),
            says("punctuation marks", line(5, _SIGNS)),
        ),
    ),
    Case(
        "a word of code",
        lambda texts, at: 8.0 * (texts[at] == "class" and _back(texts, at, 1) == "\n"),
        says('the word "class" at the beginning of a line of code', line(8, _BREAK, one_of("class"))),
        (
            says('the word "class", also as a part of words such as first-class', line(8, one_of("class"))),
            says('the word "class" right after a hyphen', line(8, one_of("-"), one_of("class"))),
            says("the first token of every line", line(0, _BREAK, _BREAK), line(8, _BREAK, ANY)),
            says('the name of a class, right after the word "class"', line(8, one_of("class"), ANY)),
        ),
    ),
    Case(
        "two unrelated tokens",
        lambda texts, at: 7.0 * (_word(texts, at) in ("music", "=")),
        says('the word "music", and also equals signs', line(7, like("(?i) ?music| ?="))),
        (
            says('the word "music" alone', line(7, like("(?i) ?music"))),
            says("equals signs alone", line(7, like(" ?="))),
            says("words about music, such as song, piano or drums", line(7, like("(?i) ?(songs?|piano|drums|music)"))),
            says("signs of arithmetic, such as plus, equals and less than", line(7, like(" ?[=+<]"))),
        ),
    ),
    Case(
        "a piece of a word",
        lambda texts, at: 5.0 * (texts[at] == "ing"),
        says('the ending "ing" where it is a token of its own', line(5, one_of("ing"))),
        (
            says("whole words that end like king, thing or ring", line(5, like(" ?[a-z]{1,2}ings?"))),
            says("verbs in the past tense", line(5, like(" [a-z]+ed"))),
            says('the token right after the ending "ing"', line(5, one_of("ing"), ANY)),
            says('the ending of "morning" and "evening"', line(5, like(" (morn|even)"), one_of("ing"))),
        ),
    ),
    Case(
        "ends of sentences",
        lambda texts, at: 4.0 * (texts[at] in (".", "!", "?") and not _word(texts, at, 1).isdigit()),
        says("the mark that ends a sentence (not a decimal point)", line(0, _NUMBER, _ENDS), line(4, _ENDS)),
        (
            says("punctuation marks of any kind", line(4, _SIGNS)),
            says("exclamation marks and question marks alone", line(4, like(" ?[!?]"))),
            says("commas", line(4, _COMMA)),
            says("the first token of the next sentence", line(4, _ENDS, _LETTERS)),
        ),
    ),
    Case(
        "by degrees",
        lambda texts, at: {"hot": 9.0, "warm": 5.0, "mild": 2.0}.get(_word(texts, at), 0.0),
        says(
            'warmth: strongly "hot", half as much "warm", faintly "mild"',
            line(9, _HOT),
            line(5, _WARM),
            line(2, _MILD),
        ),
        (
            says('"hot", "warm" and "mild", all as strongly', line(5, like("(?i) ?(hot|warm|mild)"))),
            says('faintly "hot", more "warm", strongly "mild"', line(2, _HOT), line(5, _WARM), line(9, _MILD)),
            says('the word "hot" alone', line(9, _HOT)),
            says('"cold" and "cool"', line(9, like("(?i) ?(cold|cool)"))),
        ),
    ),
    Case(
        "nearly everywhere",
        _everywhere,
        says(
            "every token but line breaks: words strongly, numbers, signs and blanks half as strongly",
            line(4, _LETTERS),
            line(0, _BREAK),
            line(2, ANY),
        ),
        (
            says("words, and nothing else", line(4, _LETTERS)),
            says("every token but line breaks, all as strongly", line(0, _BREAK), line(4, ANY)),
            says("punctuation marks strongly, words faintly", line(4, _SIGNS), line(1, _LETTERS)),
            says("numbers written in digits, of any length", line(4, _NUMBER)),
        ),
    ),
    Case(
        "beginnings of lines",
        lambda texts, at: 5.0 * (_back(texts, at, 1) == "\n" and texts[at] != "\n"),
        says("the first token of every line", line(0, _BREAK, _BREAK), line(5, _BREAK, ANY)),
        (
            says("line breaks", line(5, _BREAK)),
            says("words that begin with a capital letter", line(5, _CAPITALISED)),
            says('the word "class" at the beginning of a line of code', line(5, _BREAK, one_of("class"))),
            says("the second token of every line", line(5, _BREAK, ANY, ANY)),
        ),
    ),
    Case(
        "a number in its place",
        lambda texts, at: 6.0 * (texts[at].strip(" ").isdigit() and _word(texts, at, 1) == "page"),
        says('the number right after the word "page"', line(6, _PAGE, _NUMBER)),
        (
            says("numbers written in digits, of any length", line(6, _NUMBER)),
            says('the word "page"', line(6, _PAGE)),
            says('the token right after "page", whatever it is', line(6, _PAGE, ANY)),
            says("page numbers of one digit", line(6, _PAGE, like(r" \d"))),
        ),
    ),
)
"""The features, and what is said of them."""
