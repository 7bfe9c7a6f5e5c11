"""What needs the model of a run: features of a prompt, and a feature taken away in a prompt."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from monolex.answers import as_json
from monolex.config import require
from monolex.errors import UserError
from monolex.explorer.agent.questions import AblationQuestion
from monolex.explorer.agent.sources import Said, dictionary_facts, place_of, source, weights_source
from monolex.explorer.explorer import Explorer
from monolex.explorer.run import ExploredRun, IndexedDictionary, NotThere
from monolex.features.find import find
from monolex.features.query import FindConfig
from monolex.live.interventions import Intervention
from monolex.live.loaded import LoadedDictionary
from monolex.live.next_token import NextToken, next_token
from monolex.live.prompts import from_text
from monolex.live.reading import TokenFeatures, Wanted, read
from monolex.live.session import LiveModel

LONGEST = 20_000
"""Letters of a prompt, at most."""
ONE_PROMPT = "one prompt: no interval; monolex ablate measures over many documents"
NO_CONTROL = "one prompt: no interval, and nothing is compared with a control; what_is_known says what was"
WITHIN = 2.0
"""Factor within which the size of a control is that of the feature, as in ``monolex ablate``."""
CONTROL_RULE = (
    "both are taken away at every token on which they are active; the control is active on the last of the feature's "
    f"tokens up to the position, and its size (length of what it writes, summed over the tokens up to the position) is "
    f"the nearest to the feature's, within {WITHIN:g} times"
)


def find_in_prompt(explorer: Explorer, run: ExploredRun, config: FindConfig) -> Said:
    """The features that are active on a prompt, with the hashes of their dictionaries and of the weights' artefacts.

    Raises:
        UserError: as :func:`monolex.features.find.find`.
    """
    _require_short(config.prompt or "")
    live = explorer.live.of(run)
    with live.lock:
        answer = find(run.folder, config, lm=lambda: live.lm).to_json()
    rows = [_with_hash(explorer, run, row) for row in answer["rows"]]
    named = [run.dictionaries[key] for key in dict.fromkeys(row["dictionary"] for row in rows) if key]
    return {
        "rows": rows,
        "dictionaries": [dictionary_facts(run, each) | {"source": weights_source(run, each)} for each in named],
        "n": 1,
        "reason": NO_CONTROL,
        "notes": answer["notes"],
        "source": source(run, "activations"),
    }


def ablate_in_prompt(
    explorer: Explorer, run: ExploredRun, dictionary: IndexedDictionary, asks: AblationQuestion
) -> Said:
    """What comes next in a prompt without a feature, beside the same without a control feature.

    Raises:
        NotThere: no such feature.
        UserError: the prompt cannot be read, or as :func:`monolex.live.next_token.next_token`.
    """
    _require_short(asks.prompt)
    if not 0 <= asks.number < dictionary.d_sae:
        raise NotThere(f"feature {asks.number}: {dictionary.title} has features 0 to {dictionary.d_sae - 1}")
    live = explorer.live.of(run)
    with live.lock:
        answer = _ablated(live, dictionary.title, asks)
    head = {"run": run.slug, "dictionary": dictionary.key, "hash": dictionary.hash, "feature": asks.number}
    return head | answer | {"source": weights_source(run, dictionary)}


def _ablated(live: LiveModel, title: str, asks: AblationQuestion) -> Said:
    prompt, feature = from_text(live, asks.prompt), asks.number
    at = len(prompt.ids) - 1 if asks.position is None else asks.position
    require(0 <= at < len(prompt.ids), f"position = {asks.position}: the prompt has {len(prompt.ids)} tokens, from 0")
    listed = read(live, prompt, Wanted((title,), live.dictionary(title).weights.d_sae)).features[title]
    codes = {active.feature: active.value for active in listed[at].top}
    sizes = _sizes(live.dictionary(title), listed, at)
    control = _control(sizes, listed, at, feature)
    without = next_token(live, prompt, [Intervention(title, feature)], position=at, top=asks.top)
    beside = None
    if control is not None:
        edited = next_token(live, prompt, [Intervention(title, control)], position=at, top=asks.top)
        beside = {"feature": control, "size": sizes[control], **_change(edited)}
    return {
        "tokens": list(prompt.texts),
        "position": at,
        "active_on": [[i, code] for i, code in enumerate(_codes(listed, feature)) if code > 0],
        "active_here": codes.get(feature, 0.0),
        **_change(without),
        "size": sizes.get(feature, 0.0),
        "control": beside,
        "control_rule": CONTROL_RULE,
        "n": 1,
        "reason": ONE_PROMPT,
        "notes": list(without.notes),
    }


def _codes(listed: Sequence[TokenFeatures], feature: int) -> list[float]:
    """What a feature is on every token."""
    return [next((a.value for a in token.top if a.feature == feature), 0.0) for token in listed]


def _control(sizes: Mapping[int, float], listed: Sequence[TokenFeatures], at: int, feature: int) -> int | None:
    """The feature most like another in size, active on the last token on which that is active, up to ``at``."""
    places = [i for i, code in enumerate(_codes(listed, feature)) if code > 0 and i <= at]
    if not places or not sizes[feature]:
        return None
    others = [active.feature for active in listed[places[-1]].top if active.feature != feature]
    ratios = {other: abs(math.log(sizes[other] / sizes[feature])) for other in others if sizes[other]}
    best = min(ratios, key=lambda other: (ratios[other], other), default=None)
    return best if best is not None and ratios[best] <= math.log(WITHIN) else None


def _sizes(dictionary: LoadedDictionary, listed: Sequence[TokenFeatures], at: int) -> dict[int, float]:
    """Of every active feature the length of what it writes, summed over the tokens up to ``at``: what is taken away."""
    norms = dictionary.weights.W_dec.norm(dim=1).tolist()
    sizes: dict[int, float] = defaultdict(float)
    for token in listed[: at + 1]:
        for active in token.top:
            sizes[active.feature] += active.value * norms[active.feature]
    return dict(sizes)


def _change(answer: NextToken) -> Said:
    """The KL in nats, and the tokens whose probability changes most."""
    return {
        "kl": answer.kl,
        "before": [[chance.text, chance.before] for chance in answer.before],
        "after": [[chance.text, chance.after] for chance in answer.after],
        "changed_most": [
            {"token": chance.text, "before": chance.before, "after": chance.after} for chance in answer.changed
        ],
    }


def _with_hash(explorer: Explorer, run: ExploredRun, row: Mapping[str, Any]) -> Said:
    place = place_of(explorer, run, row["site"], row["dictionary"])
    known = place and place.dictionary
    named = {
        "dictionary": known and known.key,
        "hash": known and known.hash,
        "title": f"{row['site']}/{row['dictionary']}",
    }
    rest = {name: value for name, value in row.items() if name not in ("site", "dictionary")}
    return named | as_json(rest)


def _require_short(prompt: str) -> None:
    if len(prompt) > LONGEST:
        raise UserError(f"prompt has {len(prompt):,} letters: give at most {LONGEST:,}")
