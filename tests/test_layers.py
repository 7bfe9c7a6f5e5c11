"""Who may import whom: arrows point down (docs/architecture.md)."""

import ast
from pathlib import Path

import monolex

ROOT = Path(monolex.__file__).parent
LAYERS = (
    ("errors", "stages"),
    ("kinds", "config", "tables", "artifact", "runtime", "pieces", "stats"),
    ("sites", "hooks", "model", "chats", "documents", "corpus", "cost"),
    ("shuffle", "shards", "reader", "activations", "stored", "harvest_cost"),
    ("dictionaries",),
    ("training",),
    ("evals",),
    ("features",),
    ("causal",),
    ("interp",),
    ("pages", "report", "figures", "lexicon", "demo"),
    ("run_toml", "plan", "estimate", "pipeline", "show", "new_run"),
    ("cli", "verbs"),
    ("__init__", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports(file: Path) -> set[str]:
    """Top-level modules of monolex that ``file`` imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "monolex":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names if a.name in RANK}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("monolex.")}
    return found


def test_every_module_has_a_layer():
    modules = {
        p.stem if p.is_file() else p.name for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert modules == set(RANK)


def test_arrows_point_down():
    wrong = []
    for file in ROOT.rglob("*.py"):
        own = file.relative_to(ROOT).parts[0].removesuffix(".py")
        wrong += [f"{file.relative_to(ROOT)} imports {name}" for name in imports(file) if RANK[name] > RANK[own]]
    assert not wrong


def test_files_and_functions_stay_small():
    long = []
    for file in ROOT.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if text.count("\n") > 400:
            long.append(f"{file.name}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno > 60:
                long.append(f"{file.name}: {node.name} is over 60 lines")
    assert not long
