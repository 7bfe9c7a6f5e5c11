"""Every figure and table, a row each: what the paper says, what it is made of here, and who makes and draws it."""

from functools import partial

from monolex.interp.score.figures import WAYS
from monolex.pages.sheets import grids
from monolex.report.paper import ablated, alive, axes, beside, fidelity, patched, rooted, scored, tradeoff
from monolex.report.paper.figure import PaperFigure

SCORES = "score/NAME (and explain/NAME)"
EVALUATION = "eval"
EXPLAIN = "then `monolex explain RUN` and `monolex score RUN`"
AUTOINTERP = (
    "The paper: Pythia-70M over OpenWebText, tied dictionaries of R = 2 and α = 8.6e-4, the first 150 features of "
    "each; GPT-4 explains, a GPT-3.5 simulates."
)
OF_PATCHES = (
    "That at half of the KL every dictionary of α > 0 needs fewer features and a smaller edit than the "
    "baseline, each ratio with its whole interval over pairs of prompts below 1. The floors are no part "
    "of it."
)
"""What the verdicts of Figs. 3 and 17 are of."""
UNNUMBERED = "no figure of the paper"


def of_scores(
    which: str, number: str, title: str, claim: str, tested: str, reading, way: str, setting: str = AUTOINTERP
) -> PaperFigure:
    """A figure or table of scores."""
    numbers, tables = partial(scored.numbers, which), grids if which.startswith("table") else (lambda _numbers: ())
    head = (which, number, title, claim, tested, setting)
    return PaperFigure(*head, SCORES, way, numbers, reading, scored.drawn, tables)


CATALOG: tuple[PaperFigure, ...] = (
    of_scores(
        "fig2",
        "Fig. 2, sections 3.1 and 3.2",
        "Interpretability over the layers of the residual stream",
        "Explanations of dictionary features predict activations far better than those of neurons, random "
        "directions, PCA and ICA in the early layers; at layer 4 ICA is as good, and at layer 5 there is little "
        "gain. Neurons are no better than random directions.",
        "That in the first third of the layers that have scores every trained dictionary scores above the "
        "neurons, random directions, PCA and ICA of its site, each paired difference with its whole interval,"
        " and likewise above the same dictionaries of the control models that were scored. Later layers, and "
        "neurons beside random directions, are no part of it.",
        beside.above_all,
        f"{WAYS['fig2']}, beside baselines: {EXPLAIN}",
    ),
    PaperFigure(
        "fig3",
        "Fig. 3, section 4",
        "Features that carry a task, patched",
        "To bring the model's prediction to the donor's takes fewer patched features, and smaller edits, of a "
        "dictionary than of PCA at the same KL; a dictionary of α = 0 does not show it. The larger α, the higher the "
        "KL that is left when all features are patched; of PCA none is.",
        OF_PATCHES,
        "The paper: Pythia-410M, layer 11, 50 prompt pairs of name-swapping (IOI), R = 4, sets found by dropping "
        "features one by one and measured on the prompts that they were chosen on.",
        "patch/NAME",
        "run `monolex patch RUN`",
        partial(patched.numbers, patched.MAIN),
        patched.reading,
        patched.pictures,
    ),
    PaperFigure(
        "fig4",
        "Fig. 4, sections 5.1 and 5.2",
        "What a feature responds to, and what it does",
        "A feature that is active on the apostrophe is so at every strength of its activation, and without it the "
        "model predicts the letter s less than anything else.",
        "That ablating every feature shown changes predictions more than ablating a matched active feature: a"
        " paired t-test over documents, p < 0.05 corrected for the features of the experiment. Tokens are no "
        "part of it.",
        "The paper: one feature of Pythia-70M with R = 4, chosen by its authors; logits of one position.",
        "ablate/NAME, features",
        "run `monolex ablate RUN --features SITE/NAME@TOKEN` (and gather evidence: a [features] table)",
        ablated.numbers,
        ablated.reading,
        ablated.pictures,
    ),
    PaperFigure(
        "fig5",
        "Fig. 5, section 5.3",
        "The causes of a feature in earlier layers",
        "A feature of the last layer, of closing parentheses, can be traced back: ablating features of the layer "
        "before finds those that it depends on most, and so on down, and they mean related things.",
        "",
        "The paper: feature 2027 of layer 5 of Pythia-70M, 20 contexts, the layers one by one.",
        "tree/NAME",
        "run `monolex tree RUN --features SITE/NAME@TOKEN`, with dictionaries at two sites or more",
        rooted.numbers,
        rooted.reading,
        rooted.pictures,
    ),
    PaperFigure(
        "fig6",
        "Fig. 6, App. B",
        "Sparsity against reconstruction",
        "As α grows fewer features are active and more of the variance is lost, along a smooth curve without a knee: "
        "no sparsity is the right one.",
        "That at every step from one α to the next L0 falls and FVU rises, both with intervals apart; "
        "contradicted if at every step both run the other way. That there is no knee is for the eye.",
        "The paper: the residual stream of Pythia-70M, sixteen values of α from 1e-4 to 1e-2 in the released code.",
        EVALUATION,
        "train with several `alphas`, such as [0.001, 0.002, 0.004, 0.008], and evaluate",
        tradeoff.frontier_numbers,
        tradeoff.frontier_reading,
        tradeoff.frontier_pictures,
    ),
    PaperFigure(
        "fig7",
        "Fig. 7, App. B",
        "Sparsity against reconstruction along training",
        "The same smooth curve after more and fewer epochs.",
        "Nothing: single batches have no intervals.",
        "The paper: its long runs, at several moments: of 20 chunks of 2,098,176 activations twenty times, 42 million "
        "different ones, or of 64 chunks once, 134 million.",
        "train/NAME (metrics.jsonl)",
        "train one recipe with several `alphas`, long enough for `log_every` to log",
        tradeoff.training_numbers,
        tradeoff.training_reading,
        tradeoff.training_pictures,
    ),
    of_scores(
        "fig8",
        "Fig. 8, App. C.1",
        "Interpretability over the size of the dictionary",
        "Scores stay about the same over sizes from half as many features as dimensions to many times as many.",
        "That no size of a recipe scores otherwise than another: contradicted if the intervals of two sizes "
        "are apart, each widened for the number of comparisons (Bonferroni). Nothing confirms that scores are"
        " the same.",
        scored.across_sizes,
        WAYS["fig8"],
        "The paper: Pythia-70M, R = 0.5 to 8, α = 8.6e-4.",
    ),
    of_scores(
        "fig9",
        "Fig. 9, App. C.2",
        "Interpretability by random fragments alone",
        "Scores are much lower than with the strongest fragments; dictionaries are still ahead, most in early layers.",
        "That in the first third of the layers that have scores every trained dictionary scores above the "
        "neurons, random directions, PCA and ICA of its site, each paired difference with its whole interval,"
        " and likewise above the same dictionaries of the control models that were scored. How much lower "
        "scores are than with the strongest fragments is no part of it.",
        beside.above_all,
        f"{WAYS['fig9']}, beside baselines: {EXPLAIN}",
    ),
    of_scores(
        "fig10",
        "Fig. 10, App. C.3",
        "Interpretability of MLP features",
        "Mixed: features are more interpretable than neurons, but very many of them are dead; untied dictionaries "
        "keep more alive.",
        "That every trained dictionary scores above the neurons of its site, each paired difference with its "
        "whole interval, and likewise above the same dictionaries of the control models that were scored. "
        "Dead features are those of Fig. 16.",
        beside.above_neurons,
        f"{WAYS['fig10']}, beside neurons: {EXPLAIN}",
        "The paper: MLPs of Pythia-70M, untied, R = 1, α = 3.2e-4; GPT-4 explains, a GPT-3.5 simulates.",
    ),
    PaperFigure(
        "fig11",
        "Figs. 11 to 15, App. D",
        "Features beside axes",
        "Further features are each of one token or a few, at every strength; the axis of the residual stream that "
        "the apostrophe feature reads is of many unrelated ones.",
        "That at every site the first token has a larger share of the activation of features than of axes, "
        "means over both, intervals apart.",
        "The paper: features and an axis of Pythia-70M that its authors chose, some by `monolex find --prompt`'s way.",
        "features (of a trained dictionary and of neurons)",
        'gather evidence of both: [features] dictionaries = ["NAME", "neurons"]',
        axes.numbers,
        axes.reading,
        axes.pictures,
    ),
    PaperFigure(
        "fig16",
        "Fig. 16, App. E",
        "Features that are alive",
        "Residual dictionaries stay alive up to four times as many features as dimensions or more; of MLP "
        "dictionaries many features are dead, even at α = 0.",
        "That of all dictionaries of the residual stream with α > 0 and R ≤ 4 more than half of the features "
        "are alive, and of all of MLPs with an α and R ≥ 2 fewer, each share with its whole interval. Rows "
        "fewer than the 2 million of the paper can only make features look dead: then only that features are "
        "alive counts.",
        "The paper: Pythia-70M; alive is active more than 10 times, of some millions of rows.",
        EVALUATION,
        "evaluate trained dictionaries; several `ratios` add a panel over sizes",
        alive.alive_numbers,
        alive.alive_reading,
        alive.alive_pictures,
    ),
    PaperFigure(
        "fig17",
        "Fig. 17, App. F",
        "Features that carry a task, at other layers",
        "The same as Fig. 3 at other layers.",
        OF_PATCHES,
        "The paper: layers 3, 5, 7, 15, 19 and 23 of Pythia-410M.",
        "patch/NAME (of several sites)",
        "run `monolex patch RUN` with dictionaries at several residual sites",
        partial(patched.numbers, patched.OTHERS),
        patched.reading,
        patched.pictures,
    ),
    of_scores(
        "fig18",
        "Fig. 18, App. G",
        "Interpretability beside baselines that are as sparse",
        "Keeping only the largest codes of PCA and ICA, as many as a dictionary has, explains little of the gap.",
        "That in the first third of the layers that have scores every trained dictionary scores above the "
        "top-k baselines of its site, of each kind the one whose k is nearest its L0, each paired difference "
        "with its whole interval, and likewise above the same dictionaries of the control models that were "
        "scored.",
        beside.above_topk,
        WAYS["fig18"],
        "The paper: Pythia-70M, both directions of every axis, k the mean L0 at R = 1 and α = 8.6e-4.",
    ),
    of_scores(
        "table1",
        "Table 1, section 3.1",
        "Features and their explanations",
        "Five features of one dictionary as they come, with what an explainer says of them and how well that "
        "predicts: good and bad.",
        "",
        scored.examples,
        f"train dictionaries, {EXPLAIN}",
        "The paper: the first five features of layer 1 of Pythia-70M.",
    ),
    of_scores(
        "table2",
        "Table 2, App. C.4",
        "Scores beside the moments of activations",
        "Scores rise with the skew (correlation 0.19) and the kurtosis (0.24) of a feature's activations.",
        "That scores of trained dictionaries rise with skew and with kurtosis: every correlation that has an "
        "interval is above 0 with the whole of it.",
        scored.moments,
        f"train dictionaries, {EXPLAIN}",
        "The paper: dictionaries of several sizes; moments about zero, as here.",
    ),
    PaperFigure(
        "perplexity",
        f"Section 6.2, {UNNUMBERED}",
        "The model on reconstructions",
        "With the activations of layer 2 replaced by their reconstruction the perplexity rises from 25 to 40: "
        "dictionaries do not capture everything.",
        "That every reconstruction adds to the cross-entropy, with the whole interval.",
        "The paper: Pythia-70M over the Pile.",
        EVALUATION,
        "evaluate trained dictionaries at residual sites",
        fidelity.perplexity_numbers,
        fidelity.perplexity_reading,
        fidelity.perplexity_pictures,
    ),
    PaperFigure(
        "biases",
        f"App. G, {UNNUMBERED}",
        "Encoder biases",
        "In practice always below zero: a feature is active beyond a plane that does not go through the origin.",
        "That of every trained dictionary but those of α = 0 nine in ten encoder biases or more are below "
        "zero, with the whole interval.",
        "The paper: Pythia-70M.",
        EVALUATION,
        "evaluate trained dictionaries",
        alive.bias_numbers,
        alive.bias_reading,
        alive.bias_pictures,
    ),
    PaperFigure(
        "densities",
        f"beside Fig. 16, {UNNUMBERED}",
        "How often features are active",
        "Not in the paper: what lies on either side of the line that calls a feature alive.",
        "",
        "",
        EVALUATION,
        "evaluate trained dictionaries",
        alive.density_numbers,
        alive.density_reading,
        alive.density_pictures,
    ),
    PaperFigure(
        "similarity",
        f"in the released code, {UNNUMBERED}",
        "How alike dictionaries are",
        "Not in the paper, which has one seed of everything; its code compares dictionaries of neighbouring sizes "
        "and α by their mean largest cosine.",
        "",
        "",
        EVALUATION,
        "train several `seeds`, `alphas` or `ratios` in one sweep, and evaluate",
        fidelity.similarity_numbers,
        fidelity.similarity_reading,
        fidelity.similarity_pictures,
    ),
    of_scores(
        "training",
        f"in the released code, {UNNUMBERED}",
        "Interpretability along training",
        "Not in the paper: scores of dictionaries that a sweep kept along training.",
        "",
        scored.along_training,
        WAYS["training"],
        "",
    ),
)
"""In the order of the gallery: the paper's numbers first."""
