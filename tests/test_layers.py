"""Who may import whom: arrows point down (docs/architecture.md), between layers and within them."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from helpers.parsed_package import ROOT, Function, trees

LAYERS = (
    ("errors", "stages", "windows", "schedule", "bars"),
    (
        "kinds",
        "config",
        "train_config",
        "tables",
        "artifact",
        "answers",
        "runtime",
        "interrupt",
        "lock",
        "ranks",
        "tensor_file",
    ),
    ("pieces", "stats", "verdicts", "workers", "products"),
    ("model", "text", "cost", "speed"),
    ("activations",),
    ("dictionaries",),
    ("training",),
    ("evals",),
    ("features",),
    ("causal",),
    ("interp",),
    ("stability", "live", "toy"),
    ("pages",),
    ("report", "lexicon", "demo", "publish"),
    ("explorer",),
    ("run_toml", "patterns", "plan", "estimate", "pipeline", "show", "new_run"),
    ("said", "stage_verbs", "showing", "cli", "verbs"),
    ("__init__", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in trees()}


def imports(tree: ast.AST, *, inside: bool = True) -> set[str]:
    """Modules of monolex, as ``causal.trees``, that a file imports: anywhere, or only when it is itself imported."""
    names, left = set(), [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "monolex":
            home = (node.module or "").removeprefix("monolex").removeprefix(".")
            inner = {f"{home}.{alias.name}".removeprefix(".") for alias in node.names}
            names |= {name if name in MODULES else home for name in inner} - {""}
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("monolex.") for alias in node.names if alias.name.startswith("monolex.")}
        types_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not types_only and (inside or not isinstance(node, Function | ast.Lambda)):
            left += ast.iter_child_nodes(node)
    return names


def graph(*, inside: bool) -> dict[str, set[str]]:
    return {name: imports(trees()[path], inside=inside) for name, path in MODULES.items()}


def test_every_module_has_a_layer():
    assert {name.split(".")[0] for name in MODULES} == set(RANK)


def test_arrows_point_down():
    wrong = []
    for name, needed in graph(inside=True).items():
        wrong += [f"{name} imports {other}" for other in needed if RANK[other.split(".")[0]] > RANK[name.split(".")[0]]]
    assert not wrong


def test_no_module_imports_itself_in_the_end():
    """Not even inside functions: such an import would point up within a layer."""
    TopologicalSorter(graph(inside=True)).prepare()


def test_a_circle_would_be_seen():
    tree = ast.parse("def f():\n    from monolex.model import hooks\n    from monolex.causal.tree.grow import tree\n")
    assert imports(tree) == {"model.hooks", "causal.tree.grow"} and imports(tree, inside=False) == set()
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def test_no_test_file_is_imported():
    """What tests share is in files of its own."""
    homes = {path.stem for path in Path(__file__).parent.rglob("test_*.py")}
    for path in Path(__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[-1] for name in names} & homes, path
