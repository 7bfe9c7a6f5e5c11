"""``monolex export``: a run as files that open from a disk, and from any server that sends files.

All is written into a folder beside the one that is asked for, which takes its place when the manifest is written: an
export is whole, or it is the one that was there before.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from monolex import __version__
from monolex.artifact import MANIFEST, FileEntry, finish, open_artifact, read_json
from monolex.config import require
from monolex.errors import UserError
from monolex.explorer import assets
from monolex.explorer.explorer import Explorer
from monolex.explorer.export.choice import (
    Numbers,
    cheap_matches,
    cheap_pairs,
    chosen_dictionaries,
    chosen_numbers,
    named,
)
from monolex.explorer.export.config import ExportConfig
from monolex.explorer.export.drawing import TOGETHER, compare_page, feature_shard, opened
from monolex.explorer.export.links import ExportLinks
from monolex.explorer.export.lists import list_shards
from monolex.explorer.export.pages import embedded, experiments, single_pages
from monolex.explorer.export.shards import packed, shard_path, write
from monolex.explorer.export.words import search_facts, word_shards
from monolex.explorer.run import ExploredRun, IndexedDictionary
from monolex.explorer.views import marks
from monolex.pages.html import asset
from monolex.runtime import progress
from monolex.schedule import Schedule
from monolex.workers import Work, done

KIND = "export"
"""Of the manifest, by which an export is known."""
SHARED = ("explorer.css", "explorer.js", "tables.js")
"""Files that the server sends too."""
SCRIPTS = ("export.js", "export_list.js", "export_search.js")
"""Those that do what the server does."""
OF_A_FEATURE = ("explorer.js", "export.js", "export_feature.js")
"""The scripts of a feature's page, which are one file: a file of a disk takes a browser longer to fetch than to run."""
Files = dict[str, FileEntry]


class Exported(NamedTuple):
    """What was written."""

    folder: Path
    """Where."""
    files: int
    """How many, the manifest left out."""
    bytes: int
    """All together."""
    features: int
    """That have a page."""


def export(run: Path, out: Path, config: ExportConfig, jobs: int = 1) -> Exported:
    """Write a run's pages as a static site into the folder ``out``, in place of an export that is there.

    Raises:
        UserError: no run, nothing gathered, a pattern or feature that does not exist, or a folder that is no export.
    """
    out = out.resolve()
    require_replaceable(out)
    opened.cache_clear()
    explorer = opened(run)
    explored = next(iter(explorer.runs.values()))
    chosen = chosen_dictionaries(explored, config)
    list(named(explored, config.embed))  # refused before anything is done
    numbers = chosen_numbers(explored, chosen, config)
    pairs = cheap_pairs(explorer, chosen)
    pages = {f"compare/{a.key}-{b.key}.html" for a, b in pairs} | {f"causes/{p}.html" for p in experiments(explored)}
    links = ExportLinks(numbers=numbers, pages=frozenset(pages))
    with _replacing(out) as root:
        files = dict(_small_files(explorer, explored, chosen, links, root, config))
        work: list[Work] = [partial(compare_page, run, root, a.key, b.key, links) for a, b in pairs]
        for d in chosen:
            compared = cheap_matches(explorer, d)
            shards = sorted({number // TOGETHER for number in numbers[d.key]})
            work += [partial(feature_shard, run, root, d.key, shard, links, compared) for shard in shards]
        with progress(len(work), "export", "file") as bar:
            for _, (path, entry) in done(work, Schedule([()] * len(work)), jobs):
                files[path] = entry
                bar.update(1)
        _finish(root, explored, chosen, numbers, files)
    total = sum(entry.bytes for entry in files.values())
    return Exported(out, len(files), total, sum(map(len, numbers.values())))


def require_replaceable(out: Path) -> None:
    """Refuse to replace what is no export.

    Raises:
        UserError: a file, or a folder that holds something else.
    """
    require(not out.exists() or out.is_dir(), f"{out} is a file where a folder is needed; choose another folder")
    if not out.exists() or not any(out.iterdir()):
        return
    try:
        kind = read_json(out / MANIFEST).get("kind")
    except (UserError, AttributeError):
        kind = None
    require(kind == KIND, f"{out} holds something that is no export of monolex; choose another folder, or empty it")


def _small_files(
    explorer: Explorer,
    run: ExploredRun,
    chosen: Sequence[IndexedDictionary],
    links: ExportLinks,
    root: Path,
    config: ExportConfig,
) -> Iterator[tuple[str, FileEntry]]:
    """Write everything but features and pairs."""
    for name in SHARED:
        yield write(root, f"static/{name}", assets.ASSETS[name].content)
    for name in SCRIPTS:
        yield write(root, f"static/{name}", asset(name).encode())
    yield write(root, "static/feature.js", "".join(asset(name) for name in OF_A_FEATURE).encode())
    searched: dict[str, Any] = word_shards(run, chosen, links.numbers)
    listed = list_shards(explorer, run, chosen, links.numbers, links)
    for name, value in (searched | listed).items():
        yield write(root, shard_path(name), packed(name, value))
    facts = search_facts(run, chosen, links.numbers, searched)
    for path, text in (*single_pages(explorer, run, chosen, links, facts), *embedded(run, links, config.embed)):
        yield write(root, path, text.encode())
    yield write(root, "labels.jsonl", "".join(marks.lines(explorer, {d.hash for d in chosen})).encode())


def _finish(root: Path, run: ExploredRun, chosen: Sequence[IndexedDictionary], numbers: Numbers, files: Files) -> None:
    """The manifest, by which the next export knows that it may take this one's place."""
    listed = [{"title": d.title, "hash": d.hash, "features": len(numbers[d.key]), "d_sae": d.d_sae} for d in chosen]
    facts = {"run": run.slug, "monolex": __version__, "count": len(files), "dictionaries": listed}
    parents = {"features": open_artifact(run.folder / "features", "features").content}
    finish(root, KIND, {}, parents, dict(sorted(files.items())), facts)


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A folder that takes the place of ``out`` when the block is left, and is gone if that fails."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        root = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"))
    except OSError as error:
        raise UserError(f"cannot write into {out.parent}: {error.strerror}; choose another folder") from error
    try:
        yield root
        require_replaceable(out)  # minutes have gone by
        root.chmod(0o755)
        before = root.with_suffix(".old")
        if out.exists():
            os.replace(out, before)
        os.replace(root, out)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
