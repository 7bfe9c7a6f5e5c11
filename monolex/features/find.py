"""Find features of a run: by a prompt, by a token, by their numbers, or by two sets of texts.

Codes of signed kinds (PCA, ICA) are read on their positive side, as in the stores. What a store knows of a feature
stands beside it; dense features are flagged, since they are active on anything that is looked for.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from monolex.activations.stored import stored_model
from monolex.config import require
from monolex.dictionaries.listing import RunDictionary, choose, run_dictionaries
from monolex.features.answer import FoundFeatures, Known, NumberHit, PromptHit, TokenHit
from monolex.features.displayed import displayed_token
from monolex.features.known import gathered, knowledge, open_store
from monolex.features.prompt_activations import activations, tokenise
from monolex.features.query import FindConfig, as_sql
from monolex.lock import being_written
from monolex.model.language_model import LanguageModel
from monolex.text.characters import pieces, quoted
from monolex.text.vocabulary import Texts

GetModel = Callable[[], LanguageModel]


def find(run: str | Path, config: FindConfig, *, lm: GetModel | None = None) -> FoundFeatures:
    """What ``config`` asks for in the run ``run``; ``lm`` gives its model where that is loaded already.

    Raises:
        UserError: no such run or dictionary, nothing gathered where a store is needed, a token that is none, or texts
            that cannot be read or are too few.
    """
    run = Path(run)
    chosen = choose(run_dictionaries(run), config.dictionaries)
    named = len(chosen)
    evidence = any(dictionary.evidence is not None for dictionary in chosen)
    # a prompt needs no evidence, but ten features of each of a hundred baselines answer nobody's question
    if config.on is not None or config.sort or config.where or (config.prompt and evidence and not config.dictionaries):
        chosen = gathered(chosen)
    answer = _answer(chosen, config, lm or (lambda: stored_model(run / "activations", config.find_device)))
    if writer := being_written(run):
        answer = replace(answer, notes=(*answer.notes, f"{writer}: this is what there is now"))
    if len(chosen) == named:
        return answer
    note = f"nothing was gathered of {named - len(chosen)} of the {named} dictionaries; they are left out"
    return replace(answer, notes=(*answer.notes, note))


def _answer(chosen: Sequence[RunDictionary], config: FindConfig, get: GetModel) -> FoundFeatures:
    if config.prompt is not None:
        return by_prompt(chosen, get(), config.prompt, config)
    if config.on is not None:
        return by_token(chosen, config.on, config)
    if config.contrast is not None:
        from monolex.features.contrast import by_contrast  # its scikit-learn takes a second that no other mode needs

        return by_contrast(chosen, get(), config.contrast, config)
    return by_number(chosen, config)


def by_prompt(chosen: Sequence[RunDictionary], lm: LanguageModel, prompt: str, config: FindConfig) -> FoundFeatures:
    """Of every dictionary the ``limit`` features most active on the last token of ``prompt``, or on any.

    The separator before the text, with which documents begin in the corpus, is not one of its tokens.
    """
    texts = tokenise(lm, [prompt], literal=config.literal)
    (tokens,) = texts.tokens
    require(texts.truncated == 0, f"prompt has more tokens than the {lm.max_context} that {lm.name} takes; shorten it")
    require(len(tokens) > 0, f"prompt = {prompt!r}: the tokenizer makes no token of it; give another text")
    known_as = dict(Texts(lm).of(tokens))
    names = [known_as[token] for token in tokens]
    (batch,) = activations(lm, texts, list(dict.fromkeys(dictionary.site for dictionary in chosen)), lm.max_context)
    rows, left_out = [], {}
    for dictionary in chosen:
        x = batch.x[dictionary.site][0]
        counts = dictionary.rule.counts(batch.tokens[0], x)
        if not bool(counts.all()):
            left_out[dictionary.site] = [names[at] for at in (~counts).nonzero()[:, 0].tolist()]
        codes = dictionary.weights(lm.device).encode(x).clamp_min(0) * counts[:, None]
        known = knowledge(dictionary, config.conditions)
        last = len(tokens) - 1
        best = codes[last:].max(0) if config.token == "last" else codes.max(0)
        values = np.where(known.kept, best.values.cpu().numpy(), 0)
        for feature in (-values).argsort(kind="stable")[: config.limit].tolist():
            value, at = float(values[feature]), last if config.token == "last" else int(best.indices[feature])
            if value > 0:
                of_max = known.of_max(feature, value)
                place = (dictionary.site, dictionary.name, feature)
                rows.append(PromptHit(*place, value, of_max, at, names[at], known.of(feature)))
    where = "the last" if config.token == "last" else "any"
    note = f"active on {where} of the prompt's {len(tokens)} tokens, {' '.join(_spelled(names))}"
    apart = (
        f"at {site} {' '.join(map(quoted, tokens))} do not count, as in the harvest: separators, or of an extreme norm"
        for site, tokens in left_out.items()
    )
    return FoundFeatures(tuple(rows), (note, *apart, *texts.notes))


def _spelled(names: Sequence[str]) -> Iterator[str]:
    """The tokens of a text between quotation marks; characters of several stand before what these are."""
    for piece in pieces(names):
        tokens = [quoted(name) for name in names[piece.start : piece.stop]]
        yield tokens[0] if len(tokens) == 1 else f"{quoted(piece.text)} ({' '.join(tokens)})"


def by_token(chosen: Sequence[RunDictionary], text: str, config: FindConfig) -> FoundFeatures:
    """The ``limit`` features with the largest share of their activation on the token shown as ``text``; ties by count.

    A store keeps the tokens with the largest share of every feature, so features to which this token is a trifle are
    not seen.
    """
    token, shown = displayed_token(chosen, text)
    hits = []
    for dictionary in chosen:
        known = knowledge(dictionary, config.conditions)
        query = (
            "SELECT token.feature, token.mass / (feature.mean * ?), token.mass, token.n_active, feature.n_active "
            "FROM token JOIN feature ON feature.id = token.feature WHERE token.token = ? ORDER BY token.feature"
        )
        with closing(open_store(dictionary)) as store:
            rows = store.rows(query, (store.meta["rows"], token))
        for feature, share, mass, on_token, everywhere in rows:
            if known.kept[feature]:
                numbers = (share, mass, on_token, everywhere, known.of(feature))
                hits.append(TokenHit(dictionary.site, dictionary.name, feature, *numbers))
    hits.sort(key=lambda hit: (hit.share, hit.n_active), reverse=True)
    note = f"share of a feature's activation on token {token}, {quoted(shown)}"
    return FoundFeatures(tuple(hits[: config.limit]), (note,))


def by_number(chosen: Sequence[RunDictionary], config: FindConfig) -> FoundFeatures:
    """The ``limit`` features with the largest (or smallest) ``sort``; without it those that ``where`` keeps, by number.

    A feature that has not this number, as a dead one has no skew, is left out.
    """
    column = config.sort or "id"
    descending = config.sort is not None and not config.ascending
    where, values = as_sql(config.conditions)
    order = f"{column} {'DESC' if descending else 'ASC'}, id"
    hits = []
    for dictionary in chosen:
        with closing(open_store(dictionary)) as store:
            for summary in store.summaries(f"{where} AND {column} IS NOT NULL", values, order, config.limit):
                top = None if summary.top_token is None else store.text(summary.top_token)
                known = Known(summary.density, top, summary.comes_back)
                hits.append(NumberHit(dictionary.site, dictionary.name, summary.id, summary, known))
    hits.sort(key=lambda hit: getattr(hit.summary, column), reverse=descending)
    return FoundFeatures(tuple(hits[: config.limit]))
