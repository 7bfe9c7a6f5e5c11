"""The experiments on a run by kind: what causes and what explains its features, and the pictures of what they found."""

from pathlib import Path

from monolex.causal.config import AblateConfig, PatchConfig, TreeConfig
from monolex.interp.config import ExplainConfig, ScoreConfig

CAUSAL: dict[str, type] = {"patch": PatchConfig, "ablate": AblateConfig, "tree": TreeConfig}
"""Experiments on what features cause, each a table of named tables."""
INTERP: dict[str, type] = {"explain": ExplainConfig, "score": ScoreConfig}
"""Likewise explanations and their scores."""
Experiment = PatchConfig | AblateConfig | TreeConfig | ExplainConfig | ScoreConfig


def experiment(kind: str, folder: Path, run: Path, config: Experiment) -> list[Path]:
    """Do the experiment ``kind`` on a run, and draw what it found; the pictures' paths.

    Raises:
        UserError: as the stage of that name in :mod:`monolex.causal.stages` or :mod:`monolex.interp`.
    """
    from monolex import figures
    from monolex.causal import stages

    if isinstance(config, ExplainConfig):
        from monolex.interp.explain import explain

        explain(folder, run, config)
        return []
    if isinstance(config, ScoreConfig):
        from monolex.interp.scoring import score
        from monolex.interp.stored import chosen

        score(folder, chosen(run, config.explanations), config, run)
        return figures.draw(folder)
    getattr(stages, kind)(folder, run, config)
    return figures.draw(folder)
