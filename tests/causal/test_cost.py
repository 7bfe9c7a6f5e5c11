"""What ablations and trees were said to take follows what they are asked."""

from pathlib import Path

import torch
from helpers import tiny
from helpers.ablations import case

from monolex.causal import cost
from monolex.causal.ablate.ablation import measure_effects
from monolex.causal.ablate.controls import draws
from monolex.causal.config import AblateConfig, TreeConfig
from monolex.config import CorpusConfig, HarvestConfig
from monolex.cost import Cost, Planned, PlannedDictionary, Shape
from monolex.stability.config import StabilityConfig
from monolex.stability.cost import stability

SHAPE = Shape(134_000_000, 106_000_000, 49_152, {f"resid_post.{layer}": 576 for layer in range(30)}, 30)
"""Of SmolLM2-135M."""


def planned(config: AblateConfig | TreeConfig, *sites: str, context: int = 256) -> Planned:
    harvest, folder = HarvestConfig(sites=sites or ("resid_post.6", "resid_post.12", "resid_post.20")), Path("train")
    used = {folder: [PlannedDictionary("resid_post.6", "x", 1152, Path("run"), True)]}
    corpus = CorpusConfig(max_tokens=10_000, context_length=context)
    return Planned(Path("causes"), config, {}, [folder], corpus, harvest, SHAPE, used, {})


def ablate(**asked) -> Cost:
    return cost.ablate(planned(AblateConfig(**{"features": ("resid_post.6/x:1",), **asked})))


def minutes(taken: Cost) -> float:
    return taken.flops * 2.5 / 7e10 / 60  # on a core


def test_the_cost_of_an_ablation_follows_layers_occurrences_and_positions():
    few, every = (ablate(positions="all", rescue=rescue).flops for rescue in ((), ("resid_post.*",)))
    # layer 6 of 30: the site's rescue and others run 46 layers at five places, and 253 at all
    assert 1.4 < every / few < 1.8
    assert 1.5 < every / ablate(positions="all", rescue=("resid_post.29",)).flops < 1.9
    assert ablate(rescue=("resid_post.*",)).flops > 1.2 * ablate().flops
    assert 1.9 < ablate(occurrences=400).flops / ablate(occurrences=200).flops < 2.0
    assert ablate(features=("resid_post.6/x:1", "resid_post.6/x:2")).flops == 2 * ablate().flops
    assert ablate(features=("resid_post.20/x:1",)).flops < ablate().flops
    # of a pattern the site that takes longest
    assert ablate(features=("*/x:1",)).flops == ablate().flops
    assert ablate(positions="all").flops > 5 * ablate().flops


def test_an_ablation_takes_what_was_measured():
    """8 occurrences of 26 tokens at layer 6 of SmolLM2 took 7.4 s of a core, and with all before the token 27 s."""
    for positions, seconds in (("token", 7.4), ("all", 26.9)):
        config = AblateConfig(features=("resid_post.6/x:1",), occurrences=8, positions=positions)
        said = 60 * minutes(cost.ablate(planned(config, context=52)))
        assert 0.6 < said / seconds < 1.6


def test_memory_of_an_ablation_holds_its_changes_of_the_vocabulary():
    setup = case(tiny.model("gpt_neox"), "resid_post.0")
    drawn = draws(setup.occurrences, setup.dictionary, AblateConfig())
    changes = measure_effects(
        setup.lm, setup.dictionary, setup.feature, setup.occurrences, drawn, AblateConfig()
    ).changes
    tables = (*changes._logits.values(), *changes._probabilities.values())
    held = sum(table.numel() for table in tables) * torch.float32.itemsize
    assert held < cost.CHANGE_BYTES * changes.documents * changes.vocab < 2 * held
    assert ablate(occurrences=300).memory - ablate(occurrences=200).memory == cost.CHANGE_BYTES * 100 * SHAPE.vocab


def test_the_cost_of_a_tree_follows_the_blocks_between_its_sites():
    def tree(*sites: str, **asked) -> float:
        return cost.tree(planned(TreeConfig(**{"features": ("resid_post.20/x:1",), **asked}), *sites)).flops

    near, far = (tree("resid_post.20", site, depth=1) for site in ("resid_post.19", "resid_post.12"))
    assert 4 < far / near < 8
    assert tree("resid_post.*", depth=1) == near
    assert tree("resid_post.20", "resid_post.12", depth=9) < 1.5 * far, "there is nothing before"
    assert 1.8 < tree(confirm=128) / tree() < 2
    assert 1.99 < tree(contexts=40) / tree() < 2.01
    assert tree(depth=0) < tree(depth=1) < tree(depth=2)


def test_stability_is_counted_for_every_recipe_of_several_seeds():
    """Of any site; a seed more of a recipe costs nothing, a recipe of one seed neither."""
    trained = [("mlp_act.3", "topk-k4-r1-s0"), ("mlp_act.3", "topk-k4-r1-s1"), ("resid_post.6", "tied-a1e-3-r2-s0")]
    harvest, folder = HarvestConfig(sites=("resid_post.6", "mlp_act.3")), Path("train")
    corpus = CorpusConfig(max_tokens=10_000, context_length=256)

    def cost_of(*dictionaries: tuple[str, str]) -> Cost:
        used = {folder: [PlannedDictionary(site, name, 1536, Path("run"), True) for site, name in dictionaries]}
        return stability(Planned(Path("s"), StabilityConfig(), {}, [folder], corpus, harvest, SHAPE, used, {}))

    several = cost_of(*trained)
    assert several.flops == cost_of(*trained[:2], ("mlp_act.3", "topk-k4-r1-s2")).flops > 0
    assert cost_of(*trained[:1], trained[2]).flops == cost_of().flops == 0
    assert cost_of(*trained, ("resid_post.6", "tied-a1e-3-r2-s4")).disk == 2 * several.disk
