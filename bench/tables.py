"""Print a run's metrics as the Markdown tables of docs/results.md: ``python bench/tables.py RUN [--model subject]``."""

import argparse
from pathlib import Path
from typing import Any

from monolex.artifact import read_json

METRICS = ("l0", "fvu", "norm_ratio", "alive_paper", "dead", "negative_bias", "kl", "loss_recovered_mean")


def cell(row: dict[str, Any] | None) -> str:
    """A value with its interval, or n/a."""
    if row is None or row["value"] is None:
        return "n/a"
    interval = "" if row["low"] is None else f" [{row['low']:.3g}, {row['high']:.3g}]"
    return f"{row['value']:.3g}{interval}"


def table(rows: list[dict[str, Any]], model: str, site: str, metrics: tuple[str, ...]) -> str:
    """One line a dictionary."""
    dictionaries: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["model"] == model and row["site"] == site and not row["other"] and row["kind"] != "reference":
            dictionaries.setdefault(row["name"], {})[row["metric"]] = row
    lines = [f"| {site} | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
    for name, values in dictionaries.items():
        if "fvu" in values:
            lines.append(f"| {name} | {' | '.join(cell(values.get(metric)) for metric in metrics)} |")
    return "\n".join(lines)


def main() -> None:
    """Every site of one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", default="subject", help="subject, random or shuffled")
    parser.add_argument("--metrics", nargs="+", default=METRICS)
    options = parser.parse_args()
    rows = read_json(options.run / "eval" / "metrics.json")
    for site in dict.fromkeys(row["site"] for row in rows if row["model"] == options.model and row["site"]):
        print(table(rows, options.model, site, tuple(options.metrics)) + "\n")


if __name__ == "__main__":
    main()
