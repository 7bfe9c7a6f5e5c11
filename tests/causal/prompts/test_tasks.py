"""Prompt sets: what differs between base and donor, where roles stand, which names take part, what a file may hold."""

import json
import random
import string
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.tiny import tiny
from helpers.tiny_texts import make_tokenizer
from helpers.word_tokenizers import by_words, year_words
from transformers import PreTrainedTokenizerBase

from monolex.causal.config import PatchConfig
from monolex.causal.prompts import wordings
from monolex.causal.prompts.pairs import PromptPairs, continuations, encode, single_token
from monolex.causal.prompts.tasks import CORRUPTIONS, TASKS, draw, fill, from_jsonl, greater_than, ioi, pronoun
from monolex.causal.prompts.years import Years
from monolex.config import ModelConfig
from monolex.errors import UserError
from monolex.model.language_model import LanguageModel
from monolex.model.load import load as load_model
from monolex.model.load import load_tokenizer

CHANGED = {"io_swap": {"IO"}, "p_abc": {"IO", "S1", "S2"}, "s2_io": {"S2"}}


@pytest.fixture(scope="module")
def bundled() -> PreTrainedTokenizerBase:
    """Byte-level: a name without its space is other tokens, and most digits stand alone."""
    return load_tokenizer(ModelConfig())


def same(one: PromptPairs, other: PromptPairs) -> bool:
    return one.texts == other.texts and torch.equal(one.base, other.base) and torch.equal(one.donor, other.donor)


def named(pairs: PromptPairs, tokenizer: PreTrainedTokenizerBase, role: str, side: str) -> list[str]:
    """What stands at a role, as text."""
    ids = getattr(pairs, side)[torch.arange(len(pairs)), pairs.roles[role]]
    return [str(tokenizer.decode([token])).strip() for token in ids.tolist()]


def require_whole(pairs: PromptPairs, tokenizer: PreTrainedTokenizerBase, changed: set[str]) -> None:
    """What holds for every generated set, position by position."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for row in range(len(pairs)):
        length = int(pairs.lengths[row])
        for side, text in zip((pairs.base, pairs.donor), pairs.texts[row], strict=True):
            expected = [*start, *tokenizer.encode(text, add_special_tokens=False)]
            assert side[row].tolist() == expected + [0] * (side.shape[1] - len(expected)) and len(expected) == length
        differing = {at for at in range(pairs.base.shape[1]) if pairs.base[row, at] != pairs.donor[row, at]}
        assert differing == {int(pairs.roles[role][row]) for role in changed}
        assert pairs.changed[row].nonzero()[:, 0].tolist() == sorted(differing)
        assert pairs.real[row].tolist() == [at < length for at in range(pairs.base.shape[1])]
        assert int(pairs.roles["END"][row]) == int(pairs.end[row]) == length - 1
        assert pairs.right[row] and pairs.wrong[row] and not set(pairs.right[row]) & set(pairs.wrong[row])
    assert not pairs.texts[0][0].endswith(" ") and not any("{" in text for pair in pairs.texts for text in pair)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("kind", ["STANDARD", "WORDINGS_PRACTISED", "WORDINGS_HELD_OUT"])
def test_ioi_roles_are_the_people_that_the_corruption_says(
    bundled: PreTrainedTokenizerBase, corruption: str, kind: str
):
    pairs = ioi(
        bundled, wordings=getattr(wordings, kind), names=wordings.NAMES_PRACTISED, corruption=corruption, seed=3
    )
    require_whole(pairs, bundled, CHANGED[corruption])
    assert (pairs.task, pairs.corruption, len(pairs), pairs.left_out) == ("ioi", corruption, 50, ())
    base, donor = (
        list(zip(*(named(pairs, bundled, role, side) for role in ("IO", "S1", "S2")), strict=True))
        for side in ("base", "donor")
    )
    answers = [[bundled.convert_tokens_to_ids(f"Ġ{name}") for name in people] for people in base]
    other = [[bundled.convert_tokens_to_ids(f"Ġ{name}") for name in people] for people in donor]
    assert pairs.right == tuple((ids[0],) for ids in answers) and pairs.wrong == tuple((ids[1],) for ids in answers)
    for (io, s1, s2), people in zip(base, donor, strict=True):
        assert s1 == s2 != io
        if corruption == "io_swap":
            assert people[1:] == (s1, s2) and people[0] not in (io, s1)
        elif corruption == "s2_io":
            assert people == (io, s1, io)
        else:
            assert len({io, s1, *people}) == 5
    right = {"io_swap": [(ids[0],) for ids in other], "s2_io": [(ids[1],) for ids in other], "p_abc": [()] * 50}
    assert pairs.donor_right == tuple(right[corruption])
    first = ["ABBA" if io < s else "BABA" for io, s in zip(pairs.roles["IO"], pairs.roles["S1"], strict=True)]
    assert pairs.order == tuple(first) and bool((pairs.roles["S1"] < pairs.roles["S2"]).all())
    assert bool((pairs.roles["IO"] < pairs.roles["S2"]).all())


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 16])
@pytest.mark.parametrize("pairs", [1, 2, 30, 50, 96])
def test_wordings_take_turns_and_so_do_the_orders(bundled: PreTrainedTokenizerBase, count: int, pairs: int):
    made = ioi(bundled, pairs=pairs, wordings=wordings.STANDARD[:count])
    assert abs(made.order.count("ABBA") - made.order.count("BABA")) == pairs % 2
    uses = Counter(made.wording)
    assert set(uses) == set(range(min(count, pairs))) and max(uses.values()) - min(uses.values()) <= 1
    for wording in uses:
        orders = Counter(order for order, own in zip(made.order, made.wording, strict=True) if own == wording)
        assert abs(orders["ABBA"] - orders["BABA"]) <= 1
    for wording, (text, _) in zip(made.wording, made.texts, strict=True):
        assert text.split()[0] == wordings.STANDARD[wording].split()[0]


@pytest.mark.parametrize("task", TASKS)
def test_a_set_is_a_function_of_its_seed(bundled: PreTrainedTokenizerBase, task: str):
    random.seed(0)
    first, state = TASKS[task](bundled, pairs=20, seed=1), random.getstate()
    assert same(first, TASKS[task](bundled, pairs=20, seed=1))
    assert not same(first, TASKS[task](bundled, pairs=20, seed=2))
    assert state == random.getstate(), "drawn from the global generator"
    longer = TASKS[task](bundled, pairs=30, seed=1)
    assert longer.texts[:20] == first.texts and longer.task == task
    assert len(set(longer.texts)) > 25


def test_a_name_that_begins_a_text_is_the_token_of_the_answer(bundled: PreTrainedTokenizerBase):
    wording = (wordings.WORDINGS_PRACTISED[4],)
    assert wording[0].startswith("{a}")
    pairs = ioi(bundled, wordings=wording, names=wordings.NAMES_PRACTISED)
    require_whole(pairs, bundled, {"IO"})
    assert all(text.startswith(" ") for pair in pairs.texts for text in pair)
    words = by_words(r"[.,]", " ".join((*wordings.WORDINGS_PRACTISED, *wordings.PLACES, *wordings.NAMES, "a book")))
    apart = ioi(words, wordings=wording)
    assert all(not text.startswith(" ") for pair in apart.texts for text in pair)
    require_whole(apart, words, {"IO"})


def test_names_of_more_tokens_are_left_out_and_reported(bundled: PreTrainedTokenizerBase):
    names = ("John", "Mary", "Tom", "Elizabeth", "Jennifer", "Tom")
    pairs = ioi(bundled, names=names, pairs=40)
    assert pairs.left_out == ("Elizabeth", "Jennifer")
    assert not any(name in text for name in pairs.left_out for pair in pairs.texts for text in pair)
    for name in pairs.left_out:
        assert len(bundled.encode(f" {name}", add_special_tokens=False)) > 1
    for needed, corruption in ((3, "io_swap"), (5, "p_abc"), (2, "s2_io")):
        people = wordings.NAMES_PRACTISED[:needed]
        assert len(ioi(bundled, names=people, corruption=corruption, pairs=4)) == 4
        with pytest.raises(UserError, match=f"names: {needed - 1} of {needed} are one token .* {needed} are needed"):
            ioi(bundled, names=(*people[1:], "Elizabeth"), corruption=corruption)
    assert single_token(bundled, ("John", "Elizabeth")) == {"John": bundled.convert_tokens_to_ids("ĠJohn")}
    unknown = by_words(r"[.,]", "a John")
    assert list(single_token(unknown, ("John", "Nobody"))) == ["John"], "what is not in the vocabulary is no name"


def test_a_wording_in_which_a_name_is_spelled_otherwise_is_refused(bundled: PreTrainedTokenizerBase):
    with pytest.raises(UserError, match="in 100 draws .* gave no pair"):
        ioi(bundled, wordings=('The letter to"{a}" and {b}: {s} {v} it to {i}',))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": 0}, "pairs = 0: give at least 1"),
        ({"wordings": ()}, "wordings is empty"),
        ({"corruption": "swap"}, "corruption = 'swap': choose one of io_swap, p_abc, s2_io"),
        ({"wordings": ("{s} met {a} and {b} and gave it to {i}",)}, r"should have \{a\} \{b\} \{s\} \{i\} once each"),
        ({"wordings": ("{a} and {b} met and {s} gave it to {x} {i}",)}, "of the fields a, b, s, i, p, v, o"),
        ({"wordings": ("{a} and {b} met and {s} gave it to({i}",)}, "should have"),
        ({"wordings": ("{a} and {b} met {and {s} gave it to {i}",)}, "is no template"),
        ({"wordings": ("{a} and {} met and {s} gave it to {i}",)}, "should have"),
    ],
)
def test_what_ioi_refuses(bundled: PreTrainedTokenizerBase, options: dict, message: str):
    with pytest.raises(UserError, match=message):
        ioi(bundled, **options)


@pytest.mark.parametrize("wording", wordings.STANDARD)
def test_standard_wordings_are_sentences_of_their_own(wording: str):
    fields = [name for _, name, _, _ in string.Formatter().parse(wording) if name]
    assert sorted(fields) == sorted("abpsvoi") and fields[-1] == "i" and wording.endswith(" to {i}.")
    assert max(fields.index("a"), fields.index("b")) < fields.index("s")
    others = wordings.WORDINGS_PRACTISED + wordings.WORDINGS_HELD_OUT
    assert wording not in others and wordings.STANDARD.count(wording) == 1


def test_names_for_any_model_are_many_and_of_two_lists():
    assert len(set(wordings.NAMES)) == len(wordings.NAMES) == 100
    assert len(wordings.MEN) == len(wordings.WOMEN) == 50
    assert set(wordings.NAMES_PRACTISED + wordings.NAMES_HELD_OUT) - set(wordings.NAMES) == {"Mark", "Sam"}
    assert len(wordings.STANDARD) >= 15


def test_fill_draws_as_it_did_when_the_demo_model_was_measured():
    prompt = fill(wordings.WORDINGS_PRACTISED[0], wordings.NAMES_PRACTISED, random.Random(0))
    text = "When Robert and Emma went to the market, Emma gave a ball to"
    assert prompt == (text, "Robert", "Emma")


def test_pronouns_follow_the_name(bundled: PreTrainedTokenizerBase):
    pairs = pronoun(bundled, pairs=32)
    require_whole(pairs, bundled, {"NAME"})
    he, she = (bundled.convert_tokens_to_ids(f"Ġ{word}") for word in ("he", "she"))
    base, donor = named(pairs, bundled, "NAME", "base"), named(pairs, bundled, "NAME", "donor")
    for row in range(len(pairs)):
        man, woman = (base, donor) if base[row] in wordings.MEN else (donor, base)
        assert man[row] in wordings.MEN and woman[row] in wordings.WOMEN
        answers = ((he,), (she,)) if man is base else ((she,), (he,))
        assert (pairs.right[row], pairs.wrong[row], pairs.donor_right[row]) == (*answers, answers[1])
    assert sum(name in wordings.MEN for name in base) == 16 and set(pairs.order) == {""}
    assert set(pairs.wording) == set(range(len(wordings.PRONOUN)))
    assert "Elizabeth" in pairs.left_out and "John" not in pairs.left_out
    with pytest.raises(UserError, match="women: 0 of 1 are one token"):
        pronoun(bundled, women=("Elizabeth",))
    with pytest.raises(UserError, match="ends in a space"):
        pronoun(bundled, wordings=("{n} said that ",))
    with pytest.raises(UserError, match="not one token each"):
        pronoun(make_tokenizer())


def test_two_digit_years_of_one_token():
    tokenizer = year_words(r"\d\d", separator=False)
    pairs = greater_than(tokenizer, pairs=60)
    require_whole(pairs, tokenizer, {"YY"})
    assert (pairs.corruption, pairs.left_out) == ("yy_01", ())
    token = {year: tokenizer.get_vocab()[f"{year:02}"] for year in range(100)}
    for row, (base, _) in enumerate(pairs.texts):
        year = int(named(pairs, tokenizer, "YY", "base")[row])
        assert named(pairs, tokenizer, "YY", "donor")[row] == "01" and 1 < year < 99
        assert set(pairs.right[row]) == {token[other] for other in range(year + 1, 100)}
        assert set(pairs.wrong[row]) == {token[other] for other in range(year + 1)}
        assert set(pairs.donor_right[row]) == {token[other] for other in range(2, 100)}
        assert base.endswith(f" {base.split('year ')[1][:2]}"), "the century is the base's own"


@pytest.mark.parametrize("cut", [r"\d", r"^\d\d|\d"])
def test_years_whose_digits_are_tokens(cut: str):
    tokenizer = year_words(cut)
    pairs = greater_than(tokenizer, pairs=60)
    require_whole(pairs, tokenizer, {"YY"})
    assert pairs.corruption == "tens_0"
    token = [tokenizer.get_vocab()[str(digit)] for digit in range(10)]
    for row, (base, donor) in enumerate(pairs.texts):
        digit = int(named(pairs, tokenizer, "YY", "base")[row])
        assert named(pairs, tokenizer, "YY", "donor")[row] == "0" and 1 <= digit <= 8
        assert set(pairs.right[row]) == set(token[digit + 1 :]) and set(pairs.wrong[row]) == set(token[:digit])
        assert set(pairs.donor_right[row]) == set(token[1:])
        assert base.split("year ")[1][3] == donor.split("year ")[1][3], "the units are the base's"
    assert {int(digit) for digit in named(pairs, tokenizer, "YY", "base")} == set(range(1, 9))


def test_pairs_of_digits_that_are_tokens_all_the_same_count_by_their_tens(bundled: PreTrainedTokenizerBase):
    pairs = greater_than(bundled, pairs=40)
    require_whole(pairs, bundled, {"YY"})
    assert pairs.corruption == "tens_0"
    for row in range(len(pairs)):
        digit = int(named(pairs, bundled, "YY", "base")[row])
        for answers, expected in ((pairs.right[row], lambda ten, d=digit: ten > d), (pairs.wrong[row], digit.__gt__)):
            spelled = [str(bundled.decode([token])) for token in answers]
            assert all(text.isdigit() and expected(int(text[0])) for text in spelled)
        assert bundled.convert_tokens_to_ids("9") in pairs.right[row]


def test_years_cut_otherwise_are_refused():
    with pytest.raises(UserError, match="cuts 1732 neither"):
        greater_than(year_words("[.,]"))
    with pytest.raises(UserError, match="events is empty"):
        greater_than(year_words(r"\d\d"), events=())
    gaps = Years("yy_01", [40], {1: frozenset({7}), 40: frozenset({8}), 41: frozenset({9})})
    assert (gaps.later(40), gaps.not_later(40)) == ((9,), (7, 8))


def test_select_takes_pairs_in_the_order_asked_for(bundled: PreTrainedTokenizerBase):
    pairs = ioi(bundled, pairs=10)
    for index in ([7, 2, 2], torch.tensor([7, 2, 2])):
        some = pairs.select(index)
        assert len(some) == 3 and some.texts == (pairs.texts[7], pairs.texts[2], pairs.texts[2])
        assert torch.equal(some.base, pairs.base[[7, 2, 2]]) and torch.equal(
            some.roles["IO"], pairs.roles["IO"][[7, 2, 2]]
        )
        assert some.right[0] == pairs.right[7] and some.order[1] == pairs.order[2] and some.left_out == pairs.left_out
    mask = torch.zeros(10, dtype=torch.bool)
    mask[3] = True
    assert pairs.select(mask).texts == (pairs.texts[3],)
    assert [len(part) for part in pairs.batches(4)] == [4, 4, 2]
    assert tuple(text for part in pairs.batches(4) for text in part.texts) == pairs.texts


def test_texts_are_encoded_as_documents_begin():
    tokenizer = make_tokenizer()
    assert encode(tokenizer, ["the cat", ""]) == [[0, *tokenizer.encode("the cat", add_special_tokens=False)], [0]]
    assert 1 not in encode(tokenizer, ["a </s> b"])[0], "a special token out of text"
    assert encode(make_tokenizer(bos=False), [""]) == [[]]
    assert continuations(tokenizer, "the", [" cat", "re"])[0] == (tokenizer.convert_tokens_to_ids("Ġcat"),)
    long = "漢字 and the cat " * 700
    assert encode(tokenizer, [long])[0][1:] == tokenizer.encode(long, add_special_tokens=False, verbose=False)


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(*lines: object) -> Path:
        texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        (tmp_path / "own.jsonl").write_bytes("\n".join(texts).encode("utf-8"))
        return tmp_path / "own.jsonl"

    return write


LINE = {"base": "the cat sat on", "donor": "the cat saw on", "right": " a", "wrong": " and"}


def test_own_pairs_from_a_file(write: Write):
    tokenizer = make_tokenizer()
    many = {
        "base": "the 漢 cat",
        "donor": "the 漢 mat",
        "right": [" sat", " saw"],
        "wrong": [" and"],
        "donor_right": " to",
    }
    pairs = from_jsonl(write(LINE, "", many, "  "), tokenizer)
    assert (pairs.task, pairs.corruption, len(pairs), list(pairs.roles)) == ("own.jsonl", "", 2, ["END"])
    token = {word: tokenizer.convert_tokens_to_ids(f"Ġ{word}") for word in ("a", "sat", "saw", "and", "to")}
    assert pairs.right == ((token["a"],), (token["sat"], token["saw"]))
    assert pairs.wrong == ((token["and"],), (token["and"],)) and pairs.donor_right == ((), (token["to"],))
    assert pairs.texts[1] == (many["base"], many["donor"])
    for row in range(2):
        for side, text in zip((pairs.base, pairs.donor), pairs.texts[row], strict=True):
            assert side[row, : pairs.lengths[row]].tolist() == encode(tokenizer, [text])[0]
    assert bool((pairs.base[~pairs.real] == 0).all()) and len(set(pairs.lengths.tolist())) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"donor": "the cat"}, "own.jsonl:2: base has 5 tokens and donor 3; reword one"),
        ({"donor": LINE["base"]}, "own.jsonl:2: base and donor are the same"),
        ({"base": ""}, "own.jsonl:2: base is ''; give it as text"),
        ({"base": 3}, "own.jsonl:2: base is 3; give it as text"),
        ({"right": " cats"}, "own.jsonl:2: right ' cats' is 2 tokens after 'the cat sat on'"),
        ({"wrong": [" a", " x y"]}, "own.jsonl:2: wrong ' x y' is 4 tokens after"),
        ({"right": "e mat"}, "own.jsonl:2: right 'e mat' is 2 tokens"),
        ({"donor_right": "漢"}, "own.jsonl:2: donor_right '漢' is 3 tokens after 'the cat saw on'"),
        ({"base": "a cat s", "donor": "a mat s", "right": "at"}, "right 'at' melts into the end of 'a cat s'"),
        ({"right": []}, "own.jsonl:2: right is empty"),
        ({"right": ""}, "own.jsonl:2: right is ''; give a string or a list"),
        ({"wrong": None}, "own.jsonl:2: wrong is None; give a string or a list"),
        ({"wrong": [" and", 4]}, "give a string or a list of strings"),
        ({"wrong": [" and", " a"]}, "own.jsonl:2: ' a' is both right and wrong"),
        ({"rigth": " a"}, "own.jsonl:2: rigth is not known; the fields are base, donor"),
    ],
)
def test_a_bad_line_is_named_by_its_number(write: Write, change: dict, message: str):
    with pytest.raises(UserError, match=message) as caught:
        from_jsonl(write(LINE, {**LINE, **change}), make_tokenizer())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "own.jsonl is empty"),
        (("", "  "), "own.jsonl is empty"),
        ((LINE, "", "{'base'"), "own.jsonl:3: not JSON in UTF-8"),
        (("[1]",), "own.jsonl:1: a line is one JSON object"),
        (({"base": "a", "right": "b"},), "own.jsonl:1: donor, wrong is missing"),
    ],
)
def test_a_file_that_holds_no_pairs(write: Write, lines: tuple, message: str):
    with pytest.raises(UserError, match=message):
        from_jsonl(write(*lines), make_tokenizer())


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        from_jsonl(tmp_path / "none.jsonl", make_tokenizer())
    (tmp_path / "latin.jsonl").write_bytes(b'{"base": "caf\xe9"}')
    with pytest.raises(UserError, match="latin.jsonl:1: not JSON in UTF-8"):
        from_jsonl(tmp_path / "latin.jsonl", make_tokenizer())


def reader(tokenizer: PreTrainedTokenizerBase, positions: int = 64) -> LanguageModel:
    """A tiny model that has this tokenizer; what it says does not matter here."""
    lm = tiny("gpt_neox", max_position_embeddings=positions)
    return LanguageModel(lm.hf, tokenizer, "tiny", lm.structure)


def test_a_config_draws_what_its_fields_say(bundled: PreTrainedTokenizerBase, write: Write):
    lm = reader(bundled)
    config = PatchConfig(wordings="held-out", names="practised", corruption="s2_io", pairs=7, prompt_seed=4)
    people = {"wordings": wordings.WORDINGS_HELD_OUT, "names": wordings.NAMES_PRACTISED}
    demo = load_model(ModelConfig(device="cpu"))
    assert same(draw(demo, config), ioi(bundled, pairs=7, seed=4, corruption="s2_io", **people))
    assert same(draw(lm, PatchConfig()), ioi(bundled))
    for task in ("pronoun", "greater-than"):
        assert same(draw(lm, PatchConfig(task=task, pairs=5)), TASKS[task](bundled, pairs=5))
    own = reader(make_tokenizer())
    assert same(draw(own, PatchConfig(task=str(write(LINE)))), from_jsonl(write(LINE), make_tokenizer()))


def test_a_config_that_nothing_can_be_drawn_for(bundled: PreTrainedTokenizerBase, tmp_path: Path):
    for field, general in (("wordings", "standard"), ("names", "common")):
        said = f"{field} = 'practised' is about what the bundled model practised, and tiny is another: give '{general}'"
        with pytest.raises(UserError, match=said):
            draw(reader(bundled), PatchConfig(**{field: "practised"}))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="task = 'oio': choose ioi, greater-than, pronoun or the path"):
        draw(reader(bundled), PatchConfig(task="oio"))
    with pytest.raises(UserError, match="task = 'ioi': a prompt has .* tokens and tiny 12 positions; cut it"):
        draw(reader(bundled, 12), PatchConfig())
    with pytest.raises(UserError, match="tiny-gpt_neox has no tokenizer"):
        draw(tiny("gpt_neox"), PatchConfig())
