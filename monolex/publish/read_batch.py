"""A batch of anybody's features as evidence, without a run: what a card is drawn from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monolex.errors import UserError, nearest
from monolex.features.evidence import Evidence
from monolex.publish.batch import evidence_of
from monolex.publish.files import documents
from monolex.publish.schema import require_parallel, require_valid

PARALLEL = (
    ("pos_str", "pos_values"),
    ("neg_str", "neg_values"),
    ("freq_hist_data_bar_values", "freq_hist_data_bar_heights"),
    ("logits_hist_data_bar_values", "logits_hist_data_bar_heights"),
)
"""Lists of a feature that are of one length."""


@dataclass(frozen=True)
class ForeignBatch:
    """A file of SAEDashboard's or Neuronpedia's features."""

    model: str
    """The model's name, as the file has it."""
    layer: str
    """The block of the site, or more of a name."""
    name: str
    """What the dictionaries of all layers are called."""
    features: Mapping[int, Mapping[str, Any]]
    """The features as the file has them, by number."""

    @property
    def title(self) -> str:
        """All that the file says of where its features are from."""
        return " ".join(filter(None, (self.model, self.layer, self.name)))

    def evidence(self, number: int) -> Evidence:
        """What the file says of a feature; what it does not say is empty (:func:`monolex.publish.batch.evidence_of`).

        Raises:
            UserError: the feature is not in the file.
        """
        if number not in self.features:
            hint = nearest(str(number), list(map(str, self.features)))
            raise UserError(f"feature {number}: {self.title} has no such feature; {hint}")
        return evidence_of(self.features[number])

    def meta(self, number: int) -> dict[str, Any]:
        """What a card wants to know of the dictionary of a feature."""
        summary = self.evidence(number).summary
        rows = round(summary.n_active / summary.density) if summary.density else 0
        said = "the file names no tokens whose logits it moves"
        site = f"{self.model} {self.layer}"
        return {"name": self.name, "site": site, "signed": False, "rows": rows, "direct_reason": said}


def is_batch(value: Any) -> bool:
    """Whether a value is such a file's content, good or bad."""
    return isinstance(value, dict) and "features" in value and bool({"model_id", "sae_set"} & set(value))


def read_batch(path: str | Path) -> ForeignBatch:
    """Read a ``batch-N.json``, plain or compressed.

    Raises:
        UserError: no such file, a damaged one, or what is not a batch, with the place in it.
    """
    path = Path(path)
    values = documents(path)
    if len(values) != 1 or not is_batch(values[0][1]):
        raise UserError(f"{path} is no batch of features (no model_id and features in it); give a batch-N.json")
    return checked_batch(values[0][1], path)


def checked_batch(value: Mapping[str, Any], path: Path) -> ForeignBatch:
    """A batch out of what a file holds, feature by feature.

    Raises:
        UserError: it is not valid, or has a feature twice.
    """
    require_valid(value, "batch", path)
    features: dict[int, Mapping[str, Any]] = {}
    for i, feature in enumerate(value["features"]):
        place = f"features[{i}]"
        require_valid(feature, "feature", path, path=place)
        for names in PARALLEL:
            require_parallel(feature, names, path, place)
        for j, activation in enumerate(feature.get("activations", ())):
            require_parallel(activation, ("tokens", "values"), path, f"{place}.activations[{j}]")
        if feature["feature_index"] in features:
            raise UserError(f"{path}: feature {feature['feature_index']} is there twice; leave one of them out")
        features[feature["feature_index"]] = feature
    model, layer, name = (str(value.get(key, "")) for key in ("model_id", "layer", "sae_set"))
    return ForeignBatch(model, layer, name, features)
