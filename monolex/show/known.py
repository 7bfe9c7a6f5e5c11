"""What is said of a toy artefact: what dictionaries recover of known features."""

from pathlib import Path

from monolex.artifact import Manifest, read_json
from monolex.show.text import cell, columns, estimate

SHOWN = ("f1", "mmcs", "recovered", "l0", "fvu", "dead", "splitting", "absorption", "leaning")


def toy(path: Path, _manifest: Manifest) -> list[str]:
    """Worlds, the best cells of the grid, every kind, and what comes back as features outnumber dimensions."""
    content = read_json(path / "toy.json")
    lines = []
    for world in content["worlds"]:
        lines.append(
            f"{world['data']}: {world['features']:,} features in {world['d_in']} dimensions, {world['present']:.4g} of "
            f"them in a row, {world['children']:,} with a parent; hash {world['hash'][:12]}"
        )
    if content["grid"]:
        lines += ["\nthe grid: of every size the l1 with the largest MMCS", columns(_best(content["grid"]))]
    for part, key in (("kinds", "data"), ("superposition", "crowding")):
        if content[part]:
            shown = [name for name in SHOWN if any(row["metrics"][name]["value"] is not None for row in content[part])]
            rows = [[key, "dictionary", "features", *shown]]
            for row in content[part]:
                values = [estimate(row["metrics"][name]) for name in shown]
                rows.append([cell(row[key]), row["name"], str(row["d_sae"]), *values])
            lines += [f"\n{part}, with intervals over seeds", columns(rows)]
    return lines


def _best(cells: list[dict]) -> list[list[str]]:
    best: dict[tuple[str, str, float], dict] = {}
    for each in cells:
        key = (each["data"], each["kind"], each["size"])
        if key not in best or each["mmcs"] > best[key]["mmcs"]:
            best[key] = each
    names = ("data", "kind", "size", "l1", "mmcs", "recovered", "dead", "mse", "l0", "larger")
    return [list(names), *([cell(each[name]) for name in names] for each in best.values())]
