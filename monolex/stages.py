"""The stages of a run, one row each: its verb, its table of run.toml, and who runs, shows, draws, reports and costs it.

The command line, run.toml, the plan, ``show``, figures, the report and the schemas of artefacts all read from these
rows. Dotted names are loaded on first use, so that nothing here waits for torch.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

MadeOf = Literal["text", "activations", "dictionaries", "models", "run", "explanations"]


@dataclass(frozen=True)
class Stage:
    """One stage. Dotted names are ``module:name``."""

    verb: str
    """As on the command line and in run.toml."""
    about: str
    """What it does: the first line of its help."""
    asks: str
    """What its configuration says, as the help puts it."""
    config: str
    """Dotted: its frozen dataclass, which needs no torch."""
    run: str
    """Dotted: does it, or finds it done: ``(folder, config=…, **inputs) -> Manifest``, inputs by ``made_of``."""
    made_of: MadeOf
    """What it is given: ``text`` (model, corpus and the precision that was chosen), ``activations``, ``dictionaries``
    (activations, sources), ``models`` (those and controls), a whole ``run``, or ``explanations`` (and the run that they
    are of)."""
    show: str = ""
    """Dotted: what ``monolex show`` prints of it below the first line, ``(folder, manifest) -> list[str]``."""
    show_data: str = ""
    """Dotted: what ``monolex show --json`` says beside the manifest and ``KIND.json``, ``(folder) -> values``."""
    cost: str = ""
    """Dotted: what it will take, ``(planned) -> Cost`` (:mod:`monolex.cost`); left out: nothing worth a number."""
    check: str = ""
    """Dotted: refuses what no run of this model and these sites can answer, before anything of it is done:
    ``(config, model, sites) -> None``, of the configurations of the stage, the model, and the names of [harvest]."""
    draw: str = ""
    """Dotted: pictures of the content of its ``KIND.json``, ``(content) -> pictures``."""
    section: str = ""
    """Dotted: its part of the report, ``(run, artefacts, listed) -> Section | None``
    (:mod:`monolex.report.section`); ``eval`` and ``features`` are the body of the page."""
    command: str = ""
    """Dotted: the verb, where its flags are not those that all stages of its ``made_of`` have."""
    shown_apart: bool = False
    """Whether the report shows artefacts that run.toml does not list, for commands of their own make them in a run."""
    kind: str = ""
    """Of its artefact; left out: the verb."""
    home: str = ""
    """Its folder in a run; left out: the verb. Named tables are folders in it."""
    schema: int = 1
    """Version of the artefact's layout."""
    named: bool = True
    """Whether run.toml holds tables ``[VERB.NAME]``, as many as one likes, or one ``[VERB]``."""
    always: bool = False
    """Whether a run.toml without its table has it too, with the defaults."""
    needed: Mapping[str, str] = field(default_factory=dict)
    """Fields that run.toml cannot leave out, and what they hold."""
    makes: str = ""
    """What its verb writes, as the help puts it: ``sweep``."""
    default_out: str = ""
    """Where its verb writes by default, as the help puts it; ``folder_name`` of the configuration is the last part."""

    def __post_init__(self) -> None:
        for name in ("kind", "home"):
            object.__setattr__(self, name, getattr(self, name) or self.verb)

    def load(
        self, what: Literal["config", "run", "show", "show_data", "cost", "check", "draw", "section", "command"]
    ) -> Any:
        """What a dotted name stands for; None where there is none."""
        dotted = getattr(self, what)
        return loaded(dotted) if dotted else None

    @property
    def of_each_model(self) -> bool:
        """Whether a run does it for its control models too."""
        return self.made_of in ("text", "activations")


def loaded(dotted: str) -> Any:
    """What a dotted name, ``module:name``, stands for."""
    module, _, name = dotted.partition(":")
    return getattr(importlib.import_module(module), name)


_FEATURES = {"features": "a list of SITE/NAME:NUMBER or SITE/NAME@TOKEN"}

STAGES: tuple[Stage, ...] = (
    Stage(
        "harvest",
        "Store a model's activations over a corpus.",
        "What is stored.",
        config="monolex.config:HarvestConfig",
        run="monolex.activations.harvest:harvest",
        made_of="text",
        show="monolex.show.stages:activations",
        cost="monolex.activations.cost:cost",
        schema=2,
        command="monolex.verbs:harvest",
        kind="activations",
        home="activations",
        named=False,
        always=True,
        needed={"sites": "a list of sites"},
    ),
    Stage(
        "train",
        "Train a sweep of sparse dictionaries in one pass over stored activations.",
        "What is trained.",
        config="monolex.train_config:TrainConfig",
        run="monolex.training.trainer:train",
        made_of="activations",
        show="monolex.show.stages:members",
        cost="monolex.training.cost:cost",
        check="monolex.training.check:check",
        kind="sweep",
        makes="sweep",
    ),
    Stage(
        "baselines",
        "Fit PCA, ICA, NMF, random directions and the neuron basis on stored activations.",
        "What is fitted.",
        config="monolex.config:BaselineConfig",
        run="monolex.dictionaries.baselines:fit_folder",
        made_of="activations",
        show="monolex.show.stages:members",
        cost="monolex.dictionaries.cost:cost",
        makes="baselines",
    ),
    Stage(
        "eval",
        "Measure dictionaries on held-out text, beside those of control models.",
        "What is measured.",
        config="monolex.config:EvalConfig",
        run="monolex.evals.evaluate:evaluate",
        made_of="models",
        show="monolex.show.stages:evaluation",
        cost="monolex.evals.cost:cost",
        command="monolex.verbs:evaluate",
        named=False,
        always=True,
    ),
    Stage(
        "features",
        "Gather the evidence of every feature: contexts, histograms, tokens, neighbours; one SQLite file a dictionary.",
        "What is gathered.",
        config="monolex.config:FeaturesConfig",
        run="monolex.features.stage:features",
        schema=3,
        made_of="dictionaries",
        show="monolex.show.stages:stores",
        cost="monolex.features.cost:cost",
        named=False,
        makes="evidence",
    ),
    Stage(
        "patch",
        "Patch features of a prompt with a donor's: KL over features and edit size, for every dictionary and baseline.",
        "Which task, dictionaries and searches.",
        config="monolex.causal.config:PatchConfig",
        run="monolex.causal.patch.stage:patch",
        schema=2,
        made_of="run",
        show="monolex.show.causes:patch",
        cost="monolex.causal.cost:patch",
        check="monolex.causal.prompts.tasks:check",
        draw="monolex.pages.patch_charts:pictures",
        section="monolex.report.patch_section:section",
        default_out="by default RUN/patch/TASK",
    ),
    Stage(
        "ablate",
        "Take a feature away where it is active: which tokens the model then predicts less, beside controls.",
        "Which features, and how.",
        config="monolex.causal.config:AblateConfig",
        run="monolex.causal.ablate.stage:ablate",
        schema=2,
        made_of="run",
        show="monolex.show.causes:ablate",
        cost="monolex.causal.cost:ablate",
        check="monolex.causal.ablate.stage:check",
        draw="monolex.pages.ablate_charts:pictures",
        section="monolex.report.ablate_section:section",
        needed=_FEATURES,
        default_out="by default one in RUN/ablate that is called as the features",
    ),
    Stage(
        "tree",
        "Grow the tree of the features of earlier layers that cause a feature.",
        "Which roots, and how far.",
        config="monolex.causal.config:TreeConfig",
        run="monolex.causal.tree.stage:tree",
        schema=2,
        made_of="run",
        show="monolex.show.causes:tree",
        cost="monolex.causal.cost:tree",
        check="monolex.causal.tree.stage:check",
        draw="monolex.pages.tree_diagram:diagrams",
        section="monolex.report.tree_section:section",
        needed=_FEATURES,
        default_out="by default one in RUN/tree that is called as the roots",
    ),
    Stage(
        "explain",
        "Explain features of a run: by rules that need no language model, or by asking one.",
        "Which features, from which text, and by what.",
        config="monolex.interp.config:ExplainConfig",
        run="monolex.interp.explain.stage:explain",
        made_of="run",
        show="monolex.show.explanations:explain",
        show_data="monolex.show.explanations:explain_data",
        cost="monolex.interp.cost:explain",
        shown_apart=True,
        default_out="by default RUN/explain/MODE",
    ),
    Stage(
        "score",
        "Score explanations: simulated activations against true ones, detection, fuzzing, chance, intervals.",
        "How.",
        config="monolex.interp.config:ScoreConfig",
        run="monolex.interp.score.stage:score",
        made_of="explanations",
        show="monolex.show.explanations:score",
        cost="monolex.interp.cost:score",
        draw="monolex.pages.score_charts:pictures",
        section="monolex.report.score_section:section",
        command="monolex.verbs:score",
        shown_apart=True,
        needed={"explanations": "one of the tables [explain.NAME]"},
    ),
    Stage(
        "stability",
        "Compare features that come back under other seeds with those that do not: effects, reconstruction, scores.",
        "Which dictionaries, and how.",
        config="monolex.stability.config:StabilityConfig",
        run="monolex.stability.stage:stability",
        made_of="run",
        show="monolex.show.causes:stability",
        cost="monolex.stability.cost:stability",
        draw="monolex.pages.stability_charts:pictures",
        section="monolex.report.stability_section:section",
        default_out="by default RUN/stability/seeds",
    ),
)
"""In the order in which a run does them."""


class Beside(NamedTuple):
    """A kind of artefact that no stage of a run makes."""

    schema: int
    """Version of its layout."""
    show: str
    """As of a stage."""


BESIDE: Mapping[str, Beside] = {
    "published": Beside(1, "monolex.show.interoperable:published"),
    "imported": Beside(1, "monolex.show.interoperable:imported"),
    "toy": Beside(1, "monolex.show.known:toy"),
}
"""Made by commands of their own."""


def of_verb(verb: str) -> Stage:
    """The stage of this verb."""
    return next(stage for stage in STAGES if stage.verb == verb)


def of_kind(kind: str) -> Stage | None:
    """The stage that makes artefacts of this kind; None if there is none."""
    return next((stage for stage in STAGES if stage.kind == kind), None)


def shown_apart(kind: str) -> bool:
    """Whether the report shows artefacts of a kind that run.toml does not list."""
    stage = of_kind(kind)
    return stage is not None and stage.shown_apart
