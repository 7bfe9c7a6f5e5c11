"""Rescue: at which layers a feature is added back, and that each is the naive full forward."""

from collections import Counter

import pytest
import torch
from helpers import tiny
from helpers.ablations import IDS, add, case, over_documents
from torch import Tensor

from monolex.causal.ablate.controls import draws
from monolex.causal.ablate.rescue import later_sites, rescue_sites
from monolex.causal.config import AblateConfig
from monolex.causal.edits import ablate
from monolex.errors import UserError
from monolex.model import hooks


@pytest.mark.parametrize("site", ["resid_post.0", "resid_pre.1", "resid_mid.1", "resid_post.2"])
def test_rescue_is_whole_at_the_own_site_and_the_naive_one_later(site):
    setup = case(tiny.model("llama"), site)
    lm, dictionary, feature, occurrences = setup
    ablation = setup.run()
    layer = int(site[-1])
    later = [f"resid_post.{at}" for at in range(layer + ("post" in site), 3)]
    assert [one.site for one in ablation.rescue] == [site, *later]
    assert ablation.rescue[0].own.value == 1
    way = draws(occurrences, dictionary, AblateConfig()).direction
    for one in ablation.rescue:
        lost, left = [], []
        for row, end in enumerate(occurrences.end.tolist()):
            tokens = occurrences.tokens[row : row + 1, : end + 1]
            x = tiny.read(lm, site, tokens)
            edit = ablate(dictionary, [feature], positions=[end])
            taken = (x - edit(x))[0, -1]
            base = hooks.logits(lm, tokens)[0, -1].log_softmax(-1)
            lost.append(distance(base, hooks.logits(lm, tokens, {site: edit})).expand(2))
            with hooks.edit(lm, {site: edit}):
                back = (taken, taken.norm() * way[row])
                left.append(torch.stack([distance(base, hooks.logits(lm, tokens, {one.site: add(v)})) for v in back]))
        before, after = (over_documents(torch.stack(at_rows), occurrences.doc).sum(0) for at_rows in (lost, left))
        own, control = (1 - after / before).tolist()
        assert one.own.value == pytest.approx(own, abs=1e-9)
        assert one.control.value == pytest.approx(control, abs=1e-9)
        assert one.control.value < 0.5


def distance(base: Tensor, logits: Tensor) -> Tensor:
    return (logits[0, -1].log_softmax(-1) - base).square().sum()


@pytest.mark.parametrize(
    ("site", "layers", "wanted"),
    [
        ("resid_post.6", 30, (11, 15, 20, 24, 29)),
        ("resid_post.23", 30, (24, 25, 27, 28, 29)),
        ("resid_pre.6", 30, (10, 15, 19, 24, 29)),
        ("resid_post.24", 30, (25, 26, 27, 28, 29)),
        ("resid_post.27", 30, (28, 29)),
        ("resid_post.29", 30, ()),
        ("mlp_out.3", 30, ()),
    ],
)
def test_a_deep_model_is_rescued_at_a_few_layers_and_the_last(site, layers, wanted):
    assert rescue_sites(site, layers, ()) == tuple(f"resid_post.{layer}" for layer in wanted)


def test_layers_that_are_asked_for_are_those_that_run():
    assert rescue_sites("resid_post.1", 6, ("resid_post.4", "resid_post.2")) == ("resid_post.4", "resid_post.2")
    assert rescue_sites("resid_post.1", 6, ("resid_post.*",)) == later_sites("resid_post.1", 6)
    assert later_sites("resid_mid.1", 4) == ("resid_post.1", "resid_post.2", "resid_post.3")
    for name in ("resid_post.1", "resid_pre.4", "mlp_out.3", "resid_post.6"):
        with pytest.raises(UserError, match=f"rescue: the residual stream after resid_post.1 holds no site '{name}'"):
            rescue_sites("resid_post.1", 6, (name,))
    for site in ("resid_post.5", "mlp_out.3"):
        with pytest.raises(UserError, match=rf"rescue = \['resid_post.5'\]: no residual stream after {site}"):
            rescue_sites(site, 6, ("resid_post.5",))


def test_rescue_costs_by_the_layers_asked_for():
    lm = tiny.tiny("llama", double=True, num_hidden_layers=8)
    setup, runs = case(lm, "resid_post.1", ids=IDS[:5]), Counter()
    for number, block in enumerate(lm.structure.blocks):
        block.register_forward_pre_hook(lambda *_args, number=number: runs.update([number]))
    costs = {}
    for name, sites in {"few": ("resid_post.7",), "all": ("resid_post.*",)}.items():
        runs.clear()
        ablation = setup.run(rescue=sites)
        costs[name] = dict(runs)
        assert ablation.later == 6
        assert len(ablation.rescue) == 1 + len(rescue_sites("resid_post.1", 8, sites))
    # between them stand resid_post.2 to 6, from each of which the later blocks run once more an occurrence
    more = {number: costs["all"][number] - costs["few"][number] for number in range(8)}
    assert more == {number: max(0, number - 2) * len(setup.occurrences.end.unique()) for number in range(8)}
    every = {row.site: row.own.value for row in setup.run(rescue=("resid_post.*",)).rescue}
    assert all(row.own.value == pytest.approx(every[row.site], abs=1e-12) for row in setup.run().rescue)


def test_progress_moves_within_a_feature():
    for positions, batch_tokens in (("token", 8192), ("all", 1)):
        setup, moved = case(tiny.model("llama"), "resid_post.0", ids=IDS[:5]), []
        setup.run(positions=positions, batch_tokens=batch_tokens, advance=moved.append)
        assert sum(moved) == 2 * len(setup.occurrences.end)
        assert len(moved) >= 6
