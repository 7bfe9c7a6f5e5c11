"""What a harvest left out is nowhere edited, read or said to be active, whoever has the activations before him."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_pairs
from helpers.ablations import IDS, case
from helpers.tiny import model
from helpers.tiny_harvests import corpus_of, make_lm, store
from torch import Tensor

from monolex.activations.rule import RowRule, row_rule
from monolex.causal.ablate import interactions
from monolex.causal.ablate.controls import batches, draws
from monolex.causal.config import AblateConfig, TreeConfig
from monolex.causal.occurrences import occurrences
from monolex.causal.patch.patch import prepare_patch
from monolex.causal.tree import grow
from monolex.causal.tree.blocks import ablate_each, attribute, block_texts, codes
from monolex.dictionaries.base import Dictionary
from monolex.interp.explain.subject import ActivationQuery, subject_reader

SITE, EARLIER = "resid_post.1", "resid_post.0"


@pytest.mark.parametrize("side", ["base", "donor"])
def test_a_patch_leaves_alone_what_does_not_count_in_either_prompt(side: str) -> None:
    lm, pairs = model("gpt_neox"), random_pairs.pairs()
    token = int(getattr(pairs, side)[0, 1])
    out = (pairs.base == token) | (pairs.donor == token)
    assert out[0, 1] and pairs.base[0, 1] != pairs.donor[0, 1]
    dictionary = random_pairs.dictionary(32, 48)
    every, some = (prepare_patch(lm, pairs, SITE, dictionary, rule=RowRule(separator)) for separator in (None, token))
    whole, part = every.edit(every.all()), some.edit(some.all())
    assert whole[out].any() and not part[out].any()
    assert part[~out].any() and torch.allclose(part[~out], whole[~out])


def test_an_ablation_of_a_whole_text_leaves_alone_what_does_not_count() -> None:
    lm, dictionary, feature, found = case(model("gpt_neox"), SITE)
    config = AblateConfig(positions="all")
    target = draws(found, dictionary, config).target
    (every,) = batches(lm, dictionary, feature, found, target, config)
    active = every.lengths != 0
    tokens = found.tokens[every.rows]
    token = int(tokens[active][0])
    chosen = found._replace(rule=RowRule(token))
    (some,) = batches(lm, dictionary, feature, chosen, target, config)
    out = tokens == token
    assert every.lengths[out].any() and not some.lengths[out].any()
    assert some.lengths[~out].any() and torch.equal(some.lengths[~out], every.lengths[~out])


def test_partners_of_an_ablation_are_left_alone_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    setup, rules, real = case(model("gpt_neox"), SITE), [], interactions.active_codes

    def noted(*arguments: object) -> Tensor:
        rules.append(arguments[-1])
        return real(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(interactions, "active_codes", noted)
    rule = RowRule(int(IDS[0, 0]))
    setup._replace(occurrences=setup.occurrences._replace(rule=rule)).run(positions="all")
    assert rules and set(rules) == {rule}


def test_a_tree_looks_for_causes_where_activations_count() -> None:
    lm, target, feature, found = case(model("gpt_neox"), SITE)
    source = random_pairs.dictionary(32, 40, seed=5, site=EARLIER)
    every = block_texts(lm, target, feature, (EARLIER, SITE), found, 1000)
    before = codes(every, source, 0)
    token = int(every.tokens[0, int(before.any(1).nonzero()[0])])
    some = block_texts(lm, target, feature, (EARLIER, SITE), found, 1000, RowRule(token))
    out = every.tokens[0, : len(before)] == token
    after = codes(some, source, 0)
    assert before[out].any() and not after[out].any() and torch.equal(after[~out], before[~out])
    nothing = block_texts(lm, target, feature, (EARLIER, SITE), found, 1000, RowRule(limit=0.0))
    assert not attribute(nothing, source).active.any()
    assert not ablate_each(nothing, source, torch.arange(40)).pre.any()


@pytest.fixture(scope="module")
def acts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("rule")
    store(home / "acts", make_lm(), corpus_of(home), sites=(EARLIER, SITE))
    return home / "acts"


def dictionary_of(site: str) -> Dictionary:
    return random_pairs.dictionary(32, 48, site=site).to(torch.float32)


def test_occurrences_and_trees_take_the_rule_of_the_stored_activations(
    acts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = {site: row_rule(acts, site) for site in (EARLIER, SITE)}
    assert rules[SITE].separator == 0 and rules[EARLIER].limit != rules[SITE].limit
    assert occurrences(acts, dictionary_of(SITE), [3], count=4)[3].rule == rules[SITE]
    taken, real = [], grow.block_texts
    monkeypatch.setattr(grow, "block_texts", lambda *asked: taken.append((asked[3], asked[-1])) or real(*asked))
    both = {site: dictionary_of(site) for site in rules}
    grow.tree(make_lm(), both, SITE, 3, acts, TreeConfig(contexts=4, depth=1, children=1), text=str)
    assert taken and all(rule == rules[earlier or site] for (earlier, site), rule in taken)
    assert (EARLIER, SITE) in [sites for sites, _ in taken]


def test_patterns_are_learned_where_activations_count() -> None:
    lm, dictionary = make_lm(), dictionary_of(SITE)
    texts = [(0, 40, 41), (0, 41, 40), (0, 42, 41)]
    queries = [ActivationQuery(text, feature) for text in texts for feature in range(48)]
    every, some = (subject_reader(lm, dictionary, SITE, 64, RowRule(token))(queries) for token in (None, 41))
    out = np.array([query.tokens[-1] == 41 for query in queries])
    assert every[out].any() and not some[out].any()
    assert some[~out].any() and np.array_equal(some[~out], every[~out])
