"""Prompt sets: name-swapping (IOI), greater-than, pronouns, and one's own from a file.

Every set is a function of a tokenizer and a seed. Names are used only where they are one token, and the others are
reported in ``left_out``; the tokens of a role are found among the ids, not among words, so that punctuation cannot
shift them. In the sets made here a donor has another token than its base at the roles that the corruption changes and
nowhere else: a draw for which that does not hold is thrown away. Draws are independent, so that intervals may resample
the pairs.
"""

import random
import string
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from monolex.causal.config import PatchConfig
from monolex.causal.prompts import wordings as words
from monolex.causal.prompts.own_pairs import from_jsonl
from monolex.causal.prompts.pairs import Pair, PromptPairs, continuations, encode, single_token, stack
from monolex.causal.prompts.years import CENTURIES, Years, spelled
from monolex.config import ModelConfig, require
from monolex.errors import UserError
from monolex.features.prompt_activations import tokenizer_of
from monolex.model.files import is_demo
from monolex.model.language_model import LanguageModel

__all__ = ["CORRUPTIONS", "TASKS", "PromptPairs", "draw", "fill", "from_jsonl", "greater_than", "ioi", "pronoun"]

ORDERS = ("ABBA", "BABA")
DRAWS = 100


class Corruption(NamedTuple):
    """What becomes of the mentions IO, S1, S2 of a base prompt, in which they are A, B, B."""

    donor: str
    """A letter a mention; letters beside A and B are other people."""
    right: str
    """Who is the right answer then; empty if nobody is."""

    @property
    def people(self) -> int:
        """Different people in base and donor."""
        return len({*"AB", *self.donor})

    @property
    def changed(self) -> tuple[str, ...]:
        """Roles whose token becomes another."""
        mentions = zip(("IO", "S1", "S2"), "ABB", self.donor, strict=True)
        return tuple(role for role, base, donor in mentions if base != donor)


CORRUPTIONS: Mapping[str, Corruption] = {
    "io_swap": Corruption("CBB", "C"),
    "p_abc": Corruption("CDE", ""),
    "s2_io": Corruption("ABA", "B"),
}


class Prompt(NamedTuple):
    """The beginning of a sentence that one of two names completes."""

    text: str
    """Up to, and without, the space before the answer."""
    indirect: str
    """The right answer: who is given something (IO)."""
    subject: str
    """The wrong one: who gives, and is named twice (S)."""


def fill(wording: str, people: Sequence[str], rng: random.Random) -> Prompt:
    """A prompt of ``wording``: its text before the last name, for two of ``people`` in random roles."""
    first, second = rng.sample(people, 2)
    subject, indirect = (first, second) if rng.random() < 0.5 else (second, first)
    return Prompt(_written(wording, first, second, subject, _scene(rng)), indirect, subject)


def ioi(
    tokenizer: PreTrainedTokenizerBase,
    *,
    pairs: int = 50,
    seed: int = 0,
    wordings: Sequence[str] = words.STANDARD,
    names: Sequence[str] = words.NAMES,
    corruption: str = "io_swap",
) -> PromptPairs:
    """Who is given something? The task of Wang et al. (arXiv 2211.00593): right is IO, wrong is S.

    The donor names another IO (``io_swap``; right: that one), repeats the IO instead of S (``s2_io``; right: S), or
    names three others once each (``p_abc``; nothing is right). Wordings take turns, and so do the orders of the two
    people. Where a name that begins a text is spelled otherwise than after a space, a space is put before that text,
    so that every mention of a person is the token that the answer is.

    Raises:
        UserError: too few names of one token, an unknown corruption, or wordings that are no such sentences.
    """
    require(corruption in CORRUPTIONS, f"corruption = {corruption!r}: choose one of {', '.join(CORRUPTIONS)}")
    _require_sentences(pairs, wordings, ("absi", "basi"), "absipvo")
    ids, left_out = _one_token(tokenizer, "names", names, CORRUPTIONS[corruption].people)
    rng = random.Random(seed)
    drawn = []
    for number in range(pairs):
        wording, order = _turn(number, len(wordings))
        text = _opening(tokenizer, wordings[wording], ids) + wordings[wording]
        pair = _drawn(text, partial(_ioi, tokenizer, text, ids, corruption, ORDERS[order], rng))
        drawn.append(pair._replace(wording=wording, order=ORDERS[order]))
    return stack("ioi", corruption, drawn, left_out)


def pronoun(
    tokenizer: PreTrainedTokenizerBase,
    *,
    pairs: int = 50,
    seed: int = 0,
    wordings: Sequence[str] = words.PRONOUN,
    men: Sequence[str] = words.MEN,
    women: Sequence[str] = words.WOMEN,
) -> PromptPairs:
    """He or she? The donor (``gender_swap``) has a name of the other list at the role ``NAME``.

    Half of the base prompts are about ``men``. Which pronoun goes with a name is what most texts do, no more.

    Raises:
        UserError: no names or pronouns of one token, or wordings that are no such sentences.
    """
    _require_sentences(pairs, wordings, ("n",), "n")
    answers = single_token(tokenizer, ("he", "she"))
    require(len(answers) == 2, "pronoun: ' he' and ' she' are not one token each here; choose another task")
    lists = _one_token(tokenizer, "men", men, 1), _one_token(tokenizer, "women", women, 1)
    rng = random.Random(seed)
    drawn = []
    for number in range(pairs):
        wording, gender = _turn(number, len(wordings))
        base, donor = lists[gender][0], lists[1 - gender][0]
        text = _opening(tokenizer, wordings[wording], base) + wordings[wording]
        pair = _drawn(text, partial(_pronoun, tokenizer, text, base, donor, rng))
        right, wrong = ((answers[word],) for word in (("he", "she"), ("she", "he"))[gender])
        drawn.append(pair._replace(right=right, wrong=wrong, donor_right=wrong, wording=wording))
    return stack("pronoun", "gender_swap", drawn, [*lists[0][1], *lists[1][1]])


def greater_than(
    tokenizer: PreTrainedTokenizerBase,
    *,
    pairs: int = 50,
    seed: int = 0,
    wordings: Sequence[str] = words.LASTED,
    events: Sequence[str] = words.EVENTS,
) -> PromptPairs:
    """Which year follows 17YY? The task of Hanna et al. (arXiv 2305.00586); the role ``YY`` is what the donor changes.

    Where YY is one token, right is any YY' > YY, wrong any YY' <= YY, and the donor has YY = 01 (``yy_01``). Where
    each digit is a token, the next one is the tens digit: right is a larger one than the base's, which is 1 to 8, and
    wrong a smaller one; an equal one is neither, since the units decide then. There the donor has the tens digit 0 and
    the same units (``tens_0``), and pairs of digits that are a token all the same count by their tens.

    Raises:
        UserError: a tokenizer that cuts years otherwise, or wordings that are no such sentences.
    """
    _require_sentences(pairs, wordings, ("y",), "ny")
    require(len(events) > 0, "events is empty: give at least one noun")
    spelling, years = spelled(tokenizer)
    if spelling is None:
        raise UserError(
            "greater-than: this tokenizer cuts 1732 neither into 17 and 32 nor into 17, 3 and 2; choose another task"
        )
    rng = random.Random(seed)
    drawn = []
    for number in range(pairs):
        wording, _ = _turn(number, len(wordings))
        event, century = rng.choice(events), rng.choice(tuple(years))
        draw = partial(_greater, tokenizer, f"{wordings[wording]} {century}", event, century, years[century], rng)
        pair = _drawn(wordings[wording], draw)
        drawn.append(pair._replace(wording=wording))
    return stack("greater-than", spelling, drawn, [str(century) for century in CENTURIES if century not in years])


TASKS: dict[str, Callable[..., PromptPairs]] = {"ioi": ioi, "greater-than": greater_than, "pronoun": pronoun}
"""By name; each takes a tokenizer, ``pairs``, ``seed`` and options of its own."""


def draw(lm: LanguageModel, config: PatchConfig) -> PromptPairs:
    """The pairs that ``config`` asks for, as ``lm`` reads text.

    Raises:
        UserError: no such task or file, a tokenizer that cannot spell it, prompts beyond the model's positions, or what
            the bundled model practised for another model.
    """
    tokenizer = tokenizer_of(lm)
    _require_practised(config, lm.name, is_demo(lm.hf.name_or_path))
    if config.task in TASKS:
        options: dict[str, Any] = {"pairs": config.pairs, "seed": config.prompt_seed}
        if config.task == "ioi":
            options["wordings"] = words.SENTENCES[config.wordings]
            options |= {"names": words.PEOPLE[config.names], "corruption": config.corruption}
        pairs = TASKS[config.task](tokenizer, **options)
    else:
        known = f"task = {config.task!r}: choose {', '.join(TASKS)} or the path of a file of JSON lines"
        missing = "" if Path(config.task).suffix != ".jsonl" else "; there is no such file"
        require(Path(config.task).is_file(), known + missing)
        pairs = from_jsonl(config.task, tokenizer)
    longest = int(pairs.lengths.max())
    too_long = f"task = {config.task!r}: a prompt has {longest} tokens and {lm.name} {lm.max_context} positions; cut it"
    require(longest <= lm.max_context, too_long)
    return pairs


def check(config: PatchConfig, model: ModelConfig, _harvested: Sequence[str]) -> None:
    """Refuse what the bundled model practised, or never saw, for another model.

    Raises:
        UserError: as said.
    """
    _require_practised(config, model.model, is_demo(model.model))


def _require_practised(config: PatchConfig, name: str, bundled: bool) -> None:
    for field, general in (("wordings", "standard"), ("names", "common")):
        value = getattr(config, field)
        require(
            bundled or config.task != "ioi" or value == general,
            f"{field} = {value!r} is about what the bundled model practised, and {name} is another: give {general!r}",
        )


def _ioi(
    tokenizer: PreTrainedTokenizerBase,
    wording: str,
    ids: Mapping[str, int],
    corruption: str,
    order: str,
    rng: random.Random,
) -> Pair | None:
    """One draw; None if its tokens are not as intended."""
    corrupted = CORRUPTIONS[corruption]
    people = dict(zip("ABCDE", rng.sample(tuple(ids), corrupted.people), strict=False))
    scene, texts = _scene(rng), []
    for mentions in ("ABB", corrupted.donor):
        indirect, first, second = (people[letter] for letter in mentions)
        a, b = (indirect, first) if order == "ABBA" else (first, indirect)
        texts.append(_written(wording, a, b, second, scene))
    base, donor = encode(tokenizer, texts)
    right, wrong = ids[people["A"]], ids[people["B"]]
    if (base.count(right), base.count(wrong)) != (1, 2):
        return None
    first = base.index(wrong)
    roles = {"IO": base.index(right), "S1": first, "S2": base.index(wrong, first + 1)}
    after = tuple(ids[people[letter]] for letter in corrupted.right)
    return _intended(Pair((texts[0], texts[1]), (base, donor), (right,), (wrong,), after, roles), corrupted.changed)


def _pronoun(
    tokenizer: PreTrainedTokenizerBase,
    wording: str,
    names: Mapping[str, int],
    donor_names: Mapping[str, int],
    rng: random.Random,
) -> Pair | None:
    """One draw without its answers; None if its tokens are not as intended."""
    name, another = rng.choice(tuple(names)), rng.choice(tuple(donor_names))
    texts = wording.format(n=name), wording.format(n=another)
    base, donor = encode(tokenizer, texts)
    if base.count(names[name]) != 1:
        return None
    return _intended(Pair(texts, (base, donor), (), (), (), {"NAME": base.index(names[name])}), ("NAME",))


def _greater(
    tokenizer: PreTrainedTokenizerBase, wording: str, event: str, century: int, years: Years, rng: random.Random
) -> Pair | None:
    """One draw; None if its tokens are not as intended."""
    year = rng.choice(years.bases)
    other = years.donor(year)
    texts = tuple(wording.format(n=event, y=f"{century}{number:02}") for number in (year, other))
    base, donor = encode(tokenizer, texts)
    position = next((at for at, (a, b) in enumerate(zip(base, donor, strict=False)) if a != b), -1)
    answers = years.later(year), years.not_later(year), years.later(other)
    return _intended(Pair((texts[0], texts[1]), (base, donor), *answers, {"YY": position}), ("YY",))


def _intended(pair: Pair, changed: Sequence[str]) -> Pair | None:
    """``pair`` if base and donor are equally long and differ at the roles ``changed`` alone."""
    base, donor = pair.tokens
    differing = [position for position, (a, b) in enumerate(zip(base, donor, strict=False)) if a != b]
    return pair if len(base) == len(donor) and differing == sorted(pair.roles[role] for role in changed) else None


def _drawn(wording: str, draw: Callable[[], Pair | None]) -> Pair:
    for _ in range(DRAWS):
        if (pair := draw()) is not None:
            return pair
    raise UserError(
        f"wordings: in {DRAWS} draws {wording!r} gave no pair whose tokens differ only where they should; "
        "leave that wording out or give other names"
    )


def _turn(number: int, wordings: int) -> tuple[int, int]:
    """Wording and order of a pair: wordings take turns; every wording alternates, and so do almost all neighbours."""
    return number % wordings, (number % wordings + number // wordings) % 2


def _scene(rng: random.Random) -> dict[str, str]:
    return {"p": rng.choice(words.PLACES), "v": rng.choice(words.VERBS), "o": rng.choice(words.OBJECTS)}


def _written(wording: str, first: str, second: str, subject: str, scene: Mapping[str, str]) -> str:
    return wording[: wording.index(" {i}")].format(a=first, b=second, s=subject, **scene)


def _opening(tokenizer: PreTrainedTokenizerBase, wording: str, ids: Mapping[str, int]) -> str:
    """A space, if ``wording`` begins with a name that would be other tokens there than after a space."""
    name = next(iter(ids))
    return " " if wording.startswith("{") and continuations(tokenizer, "", [name]) != [(ids[name],)] else ""


def _one_token(
    tokenizer: PreTrainedTokenizerBase, field: str, names: Sequence[str], needed: int
) -> tuple[dict[str, int], list[str]]:
    """Names of one token with their ids, and the others."""
    ids = single_token(tokenizer, names)
    left_out = [name for name in dict.fromkeys(names) if name not in ids]
    require(
        len(ids) >= needed,
        f"{field}: {len(ids)} of {len(ids) + len(left_out)} are one token after a space in this tokenizer, and "
        f"{needed} are needed; give {field} that are",
    )
    return ids, left_out


def _require_sentences(pairs: int, wordings: Sequence[str], orders: Sequence[str], allowed: str) -> None:
    """``orders`` are the orders in which the fields that are needed may come; ``allowed`` are all fields."""
    require(pairs >= 1, f"pairs = {pairs}: give at least 1")
    require(len(wordings) > 0, "wordings is empty: give at least one sentence")
    for wording in wordings:
        try:
            fields = [name for _, name, _, _ in string.Formatter().parse(wording) if name is not None]
        except ValueError as error:
            raise UserError(
                f"wordings: {wording!r} is no template: {error}; double braces that are no fields"
            ) from None
        needed = "".join(name for name in fields if name in orders[0])
        require(
            needed in orders and set(fields) <= set(allowed) and ("i" not in needed or " {i}" in wording),
            f"wordings: {wording!r} should have {' '.join(f'{{{name}}}' for name in orders[0])} once each and in this "
            f"order, of the fields {', '.join(allowed)}",
        )
        require(not wording[-1].isspace(), f"wordings: {wording!r} ends in a space, which belongs to the answer")
