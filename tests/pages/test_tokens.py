"""A context on a page: every token in its place, nothing invisible, nothing that is markup."""

import html
import re

import pytest
from helpers.fake_store import HOSTILE

from monolex.features.evidence import Context
from monolex.interp.records import Overlay
from monolex.pages import html as page
from monolex.pages import tokens
from monolex.text.characters import alone


def context_of(texts, activations, start=0) -> Context:
    ids = tuple(range(len(texts)))
    return Context(0, 3, 1, start, ids, tuple(texts), tuple(map(float, activations)), "top", 0, 0)


def words(shown: str) -> str:
    """The text that a reader sees."""
    return html.unescape(re.sub(r"<[^>]*>", "", shown))


TEXTS = [f" w{i}" for i in range(64)]


def test_plain_text_stays_as_it_is_and_only_active_tokens_are_marked():
    shown = str(tokens.context(context_of(["def", " add", "(", "self"], [0, 2.5, 0, 0.25], 60), 10.0))
    assert shown == 'def<mark class="a2 peak" title="2.50 @61"> add</mark>(<mark class=a0 title="0.250 @63">self</mark>'
    assert words(shown) == "def add(self"


def test_window_is_around_the_strongest_and_the_rest_is_a_title():
    activations = [0.0] * 64
    activations[40], activations[5] = 2.0, 1.0
    shown = str(tokens.context(context_of(TEXTS, activations), 2.0, 3))
    assert words(shown) == "…" + "".join(TEXTS[37:44]) + "…"
    titles = re.findall(r'<i title="([^"]*)">…', shown)
    assert titles == [tokens.plain("".join(TEXTS[:37])), tokens.plain("".join(TEXTS[44:]))]
    assert shown.count("<mark") == 1
    assert str(tokens.context(context_of(TEXTS, activations), 2.0, 3, cut=False)).count("title") == 1


@pytest.mark.parametrize(("peak", "text"), [(0, TEXTS[:4]), (63, TEXTS[60:])])
def test_window_ends_where_the_fragment_does(peak, text):
    activations = [1.0 if i == peak else 0.0 for i in range(64)]
    assert words(str(tokens.context(context_of(TEXTS, activations), 1.0, 3))).strip("…") == "".join(text)


def test_whole_fragment_where_it_fits():
    assert words(str(tokens.context(context_of(TEXTS, [0.0] * 63 + [1.0]), 1.0, 63))) == "".join(TEXTS)


def test_the_strongest_of_the_negative_side_is_the_most_negative():
    activations = [0.0] * 64
    activations[40], activations[5], activations[41] = -2.0, -1.0, -0.25
    shown = str(tokens.context(context_of(TEXTS, activations, 100), -4.0, 3))
    assert words(shown) == "…" + "".join(TEXTS[37:44]) + "…"
    marks = re.findall(r"<mark[^>]*>", shown)
    assert marks == ['<mark class="n5 peak" title="−2.00 @140">', '<mark class=n1 title="−0.250 @141">']
    silent = str(tokens.context(context_of(TEXTS, [1.0] * 64), -4.0, 2))
    assert "<mark" not in silent and words(silent) == "…" + "".join(TEXTS[30:35]) + "…"


def test_a_character_over_several_negative_tokens_has_a_mark_for_each():
    shown = str(tokens.context(context_of([r"\xe5", r"\x8c", r"\x97"], [-1.0, 0.0, -4.0], 8), -4.0))
    assert re.findall(r"<mark[^>]*>", shown) == [
        r'<mark class=n2 title="\xe5: −1.00 @8">',
        r'<mark title="\x8c: 0 @9">',
        r'<mark class="n10 peak" title="\x97: −4.00 @10">',
    ]


def test_silent_context_has_no_mark_and_is_cut_around_its_middle():
    shown = str(tokens.context(context_of(TEXTS, [0.0] * 64), 3.0, 2))
    assert "<mark" not in shown and words(shown) == "…" + "".join(TEXTS[30:35]) + "…"


def test_levels_rise_from_zero_to_ten():
    levels = [tokens.level(i / 100, 1.0) for i in range(101)]
    assert levels == sorted(levels) and set(levels) == set(range(11))
    assert tokens.level(1.0, 0.0) == 0 and tokens.level(2.0, 1.0) == 10


@pytest.mark.parametrize("text", [HOSTILE, '"><script>alert(1)</script>', "&amp;", "' onclick='x", "--><!--"])
def test_markup_in_tokens_is_text(text):
    context = context_of(["a", text, text, "b"], [0, 1, 0, 0])
    for shown in (str(tokens.context(context, 1.0)), str(tokens.context(context, 1.0, 0)), str(tokens.token(text))):
        assert set(re.findall(r"<(/?\w+)", shown)) <= {"mark", "/mark", "i", "/i", "bdi", "/bdi"}
        assert re.sub(r"[␣…]", "", words(shown)).replace(" ", "") in {
            bare.replace(" ", "") for bare in (f"a{text}{text}b", text)
        }
        assert not re.search(r'title="[^"]*"[^>\s]', shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a", "␣a"),
        ("\n", "↵"),
        ("\n    ", "↵␣×4"),
        ("\t", "→"),
        ("\r\n", "␍↵"),
        ("\x00", "␀"),
        ("\x07", "␇"),
        ("\x7f", "␡"),
        ("\x85", "U+0085"),
        ("\u200b", "U+200B"),
        ("\u200d", "U+200D"),
        ("\ufeff", "U+FEFF"),
        ("\u202e", "U+202E"),
        ("\u2028", "U+2028"),
        ("\xa0", "⍽"),
        ("\u3000", "␣"),
        ("\ufffd", "\ufffd"),
        ("  ", "␣␣"),
        ("", "∅"),
        ("漢字", "漢字"),
    ],
)
def test_nothing_is_invisible(text, shown):
    assert words(str(tokens.token(text))) == shown
    assert text == "" or tokens.plain(text) == shown


def test_accent_alone_has_a_base_and_stays_on_its_letter_in_a_run():
    context = context_of(["e", "\u0301", "x", "\u0301"], [0, 0, 0, 1])
    assert words(str(tokens.context(context, 1.0))) == "e\u0301x◌\u0301"


def test_right_to_left_is_isolated():
    shown = str(tokens.context(context_of(["a ", "שלום", " b", " עולם", " שלום", "\n1"], [0, 1, 0, 0, 0, 0]), 1.0))
    assert shown.startswith("a <mark") and "><bdi>שלום</bdi></mark>" in shown
    assert shown.endswith("</mark> b <bdi>עולם שלום</bdi><i>↵</i>1")


PEKING = ["in ", *(alone(bytes([byte])) for byte in "北京".encode()), "."]


def test_a_cut_character_stands_once_over_a_mark_for_each_of_its_tokens():
    shown = str(tokens.context(context_of(PEKING, [0, 1, 0, 4, 0, 0, 0, 0], 7), 4.0))
    assert words(shown) == "in 北京."
    marks = (
        '<mark class=a2 title="\\xe5: 1.00 @8"></mark><mark title="\\x8c: 0 @9"></mark>'
        '<mark class="a10 peak" title="\\x97: 4.00 @10"></mark>'
    )
    assert shown == f"in <span class=cut>北<u>{marks}</u></span>京."


def test_every_token_of_a_cut_character_can_be_pointed_at(browser_page, tmp_path):
    shown = tokens.context(context_of(PEKING, [0, 1, 0, 4, 0, 0, 2, 0]), 4.0)
    style = f"<meta charset=utf-8><style>{page.style()}</style>"
    (tmp_path / "page.html").write_text(
        f"{style}<div class=monolex><p class=feature>{shown}</p></div>", encoding="utf-8"
    )
    browser_page.page.goto((tmp_path / "page.html").as_uri())
    pointed = browser_page.page.evaluate(
        """() => [...document.querySelectorAll('.cut mark')].map(mark => {
            const box = mark.getBoundingClientRect();
            return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2) === mark && box.width > 2;
        })"""
    )
    assert pointed == [True] * 6


def test_characters_are_whole_at_the_edges_of_the_window_and_in_what_is_beyond_it():
    shown = str(tokens.context(context_of(PEKING, [0, 0, 3, 0, 0, 0, 0, 0]), 3.0, 0))
    assert words(shown) == "…北…"
    assert 'title="京."' in shown
    # silent: around the middle, which is within the second character
    assert words(str(tokens.context(context_of(PEKING, [0] * 8), 3.0, 0))) == "…京…"


def test_a_part_of_a_character_that_lacks_the_rest_is_its_bytes():
    shown = str(tokens.context(context_of(PEKING[2:5], [0, 1, 0]), 1.0))
    assert words(shown) == r"\x8c\x97\xe4"
    assert r'title="\x97: 1.00 @1"' in shown
    assert words(str(tokens.token(PEKING[1]))) == tokens.plain(PEKING[1]) == r"\xe5"


def test_cut_characters_in_endings_and_overlays():
    shown = str(tokens.ending(PEKING[:4], 2.0, 4.0))
    assert shown == r'in <mark class="a5 peak" title="\x97: 2.00">北</mark>'
    overlay = Overlay("top", 0, tuple(PEKING), (0, 1.0, 0, 0, 0, 0, 0, 0), (0, 0, 0, 2.0, 0, 0, 0, 0))
    shown = str(tokens.overlaid(overlay, 1.0, 2.0))
    assert words(shown) == "in 北京."
    assert re.findall('title="([^"]*)"', shown) == [
        r"\xe5: real 1.00, simulated 0",
        r"\x8c: real 0, simulated 0",
        r"\x97: real 0, simulated 2.00",
    ]
