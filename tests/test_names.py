"""Names say the thing: two numbers that may only fall."""

import ast
from collections import Counter
from collections.abc import Iterator

from helpers.parsed_package import ROOT, Function, agree, arguments, trees

SHARED_CLASSES = 0
"""Public class names that the package defines more than once (aim: 0)."""
VAGUE_VARIABLES = 0
"""Arguments and local variables of functions with one of the names below (aim: under 40)."""
VAGUE = {"one", "found", "some", "made", "own", "here", "how", "given", "asked", "there"}


def bound(function: Function | ast.Lambda) -> set[str]:
    """Names that a function binds: its arguments, and what it assigns; functions within it have their own."""
    names, left = set(arguments(function)), list(ast.iter_child_nodes(function))
    while left:
        node = left.pop()
        if isinstance(node, Function | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            names.add(node.name)
        left += ast.iter_child_nodes(node)
    return names


def vague(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of every variable that does not say what it is."""
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.Lambda):
            yield from ((node.lineno, name) for name in sorted(bound(node) & VAGUE))


def test_the_count_sees_every_way_to_bind_a_name():
    source = """
def first(one, *some, own=1, **asked):
    found = [how for how in asked]
    with open(own) as (made, x):
        pass
    for there, y in x:
        (given := y)
    def second(z):
        here = one.found
    return lambda one: z
    here.found = 1
"""
    assert Counter(name for _, name in vague(ast.parse(source))) == Counter(
        {"one": 2, **dict.fromkeys(VAGUE - {"one"}, 1)}
    )


def test_public_classes_have_names_of_their_own():
    homes: dict[str, list[str]] = {}
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    shared = {name: places for name, places in homes.items() if len(places) > 1}
    agree("SHARED_CLASSES", SHARED_CLASSES, [f"{name} in {', '.join(places)}" for name, places in shared.items()])


def test_variables_say_what_they_are():
    listed = [f"{path.relative_to(ROOT)}:{line} {name}" for path, tree in trees().items() for line, name in vague(tree)]
    agree("VAGUE_VARIABLES", VAGUE_VARIABLES, listed)
