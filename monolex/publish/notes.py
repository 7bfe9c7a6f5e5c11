"""What each format has no number for, and what its numbers mean here: in the manifest, and as a page for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from monolex.publish.batch import ABSENT
from monolex.publish.config import Format

EMPTY: Mapping[Format, Mapping[str, str]] = {
    "neuronpedia": {
        ", ".join(f"`{name}`" for name in ABSENT[:6]): (
            "correlations of activations with those of neurons and of other features; what is known instead (cosine of "
            "decoder directions, Jaccard index of being active) is another number, and the format has no place for it"
        ),
        "`decoder_weights_dist`": "the share of every attention head in a direction is not computed",
        "`dfa_*`, `loss_values`, `logit_contributions`": "what heads read, and losses, are not gathered",
        "`logits_hist_*`, `pos_*`, `neg_*`": (
            "empty where directions of a site have no way to the logits but through later layers; the histogram also "
            "with `--no-logits`, and where the model can no longer be loaded"
        ),
        "`embedding`, `umap_*`, `scoreV2` of explanations": "not computed",
    },
    "neuron-explainer": {
        "`distribution_values`, `distribution_probabilities`": "of a prediction only its expected value is kept",
        "`uncalibrated_simulation`": "predictions are never calibrated",
        "`random_sample_by_quantile`, `quantile_boundaries`": "random fragments are one sample",
        "`scored_simulation`": "null where an explanation was not scored",
    },
    "delphi": {
        "`scores/`, `neighbours/`, `log/`": "delphi computes its own",
        "`latents/`": "not there with `--latents none`",
    },
}
"""By format: fields, and why they are empty."""

MEANING: Mapping[Format, Sequence[str]] = {
    "neuronpedia": (
        "`frac_nonzero` is exact, and `freq_hist_data_bar_*` are the 40 bins that were counted, between 0 and the "
        "largest activation (SAEDashboard has 50 between the smallest and the largest); values are the bins' middles.",
        "`pos_*`, `neg_*` and `logits_hist_*` are changes of logits per unit of activation, through the final norm's "
        "linear part and the unembedding alone, less the mean over the vocabulary.",
        "`activations` hold every context once. `bin_min` -1: the strongest. `bin_contains` is the share of the "
        "contexts in which the feature is active (SAEDashboard: of activations): `bin_min` to `bin_max` are the maxima "
        "of the contexts drawn of a quantile of these; from 0: those just above zero; from 0 and with share 1: drawn "
        "at random; 0 to 0: contexts in which it is not active.",
        "Tokens that hold part of a character have its bytes in hexadecimal, as `\\xe5\\x8c`.",
        "`n_prompts_total` are packed rows of text, of which separators and rows of extreme norm do not count.",
        "`vector` is the decoder row, `[d_out]`, to four digits, with its length.",
        "`scoreV1` of an explanation is a correlation by a language model that simulated, the first of them; "
        "where only rules simulated it is null: theirs are no such scores. `notes` hold JSON with every score: "
        "`simulator` (`rules` is none of a language model), `value`, its interval `low` to `high` over documents, "
        "`chance` (what explanations of other features score on it), `path` and `content` (hash) of the artefact.",
        "`authorId` is to be replaced by a user's before explanations are imported.",
    ),
    "neuron-explainer": (
        "`most_positive_activation_records` are the fragments that a feature was explained from and those of its "
        "strongest that it was scored on, strongest first, not the twenty strongest: the splits that neuron-explainer "
        "makes by stride are not those of this run. What was scored stands in the simulation results.",
        "`skewness` and `kurtosis` are moments about zero.",
        "Fragments with a token of which nothing was predicted are left out of a simulation; its "
        "`ev_correlation_score` counts their other tokens too, the other two scores do not.",
        "`neuron_index` is the feature, `layer_index` the block of its site.",
    ),
    "delphi": (
        "Each dictionary's folder is one of delphi's `results/NAME`. Where several explainers spoke, each has a folder "
        "of its own in `explanations/`; move the wanted texts up.",
        "`latents/SITE` holds every activation of the split's stored rows: separators and rows of extreme norm have "
        "none. `locations` count features from the first number of the file's name.",
        "`model_name` and `dataset_repo` are what the run was made with.",
    ),
}
"""By format: what is to be known of its numbers."""


def page(format_: Format, dictionaries: Mapping[str, Mapping[str, Any]]) -> str:
    """What lies in the folder, as Markdown; ``dictionaries`` are the facts of each by its folder."""
    counts = [f"| `{folder}` | " + ", ".join(f"{value:,} {key}" for key, value in facts.items()) + " |"
              for folder, facts in dictionaries.items()]  # fmt: skip
    empty = [f"- {fields}: {reason}." for fields, reason in EMPTY[format_].items()]
    meaning = [f"- {sentence}" for sentence in MEANING[format_]]
    parts = [f"# Features of a run of monolex, as {format_}", "| folder | holds |\n|---|---|", *counts]
    head = "\n\n".join(parts[:2]) + "\n" + "\n".join(counts)
    return f"{head}\n\n## What the numbers are\n\n{_lines(meaning)}\n\n## What is empty\n\n{_lines(empty)}\n"


def _lines(sentences: Sequence[str]) -> str:
    return "\n".join(sentences)
