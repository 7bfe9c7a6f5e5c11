"""The explorer on a synthetic dictionary of 32,768 features with 40 contexts each: milliseconds a page, at the server.

    python bench/explorer.py [FEATURES …]
    python bench/explorer.py export [FEATURES …]

For each width the index is built once, then pages are asked for over HTTP at random and timed one by one; the same
feature is hardly ever asked twice. Also printed: bytes of a page, of the store and of the index a feature.

With ``export`` the same run is written as files: seconds in all and of the processor, bytes a feature on disk and
gzipped, files; and where there is a browser, milliseconds from the asking for a feature, read from the disk, until it
is drawn, in a page that is opened anew and in one that is open.
"""

import gzip
import shutil
import sys
import tempfile
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import torch
import uvicorn
from playwright.sync_api import sync_playwright

from monolex.artifact import FileEntry, file_hash, finish
from monolex.dictionaries.base import Dictionary, DictionaryConfig
from monolex.explorer.app import app
from monolex.explorer.explorer import Explorer
from monolex.explorer.export.config import ExportConfig
from monolex.explorer.export.write import export
from monolex.explorer.server import bind
from monolex.features.evidence import BINS, TOKEN_BINS
from monolex.features.store_writer import StoreWriter

CONTEXTS, LENGTH, VOCABULARY, ROWS, D_IN = 40_000, 64, 20_000, 2_560_000, 64
GROUPS = [("top", 0, 16), *(("quantile", part, 3) for part in range(5)), ("random", 0, 5), ("near_zero", 0, 4)]
ASKED = 300


def main() -> None:
    measured = measure_export if sys.argv[1:2] == ["export"] else measure
    widths = [int(text) for text in sys.argv[1:] if text.isdecimal()] or [8_192, 16_384, 32_768]
    for width in widths:
        with tempfile.TemporaryDirectory() as folder:
            measured(synthetic_run(Path(folder) / "run", width), width)


def synthetic_run(run: Path, width: int) -> Path:
    """A run with one dictionary of ``width`` features and its store; nothing of it was learned."""
    site, name = "resid_post.3", "topk-k32-r512-s0"
    harvested = {"sites": {}, "rows": {"train": ROWS}, "model": {"name": "synthetic"}}
    content = finish(run / "activations", "activations", {}, {}, {}, harvested).content
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(width, D_IN, generator=generator), dim=1)
    weights = {"W_enc": rows, "b_enc": torch.zeros(width), "centre": torch.zeros(D_IN)}
    weights |= {"W_dec": rows.clone(), "b_dec": torch.zeros(D_IN)}
    config = DictionaryConfig(kind="topk", activation="topk", d_in=D_IN, d_out=D_IN, d_sae=width, site=site, k=32)
    home = run / "train" / "main"
    Dictionary(config, weights).save(home / site / name)
    files = {p.relative_to(home).as_posix(): entry(p) for p in sorted((home / site).rglob("*")) if p.is_file()}
    members = {"members": [{"path": f"{site}/{name}", "site": site, "name": name, "kind": "topk"}]}
    sweep = finish(home, "sweep", {}, {"activations": content}, files, members)
    store = run / "features" / site / f"{name}.sqlite"
    write_store(store, width, {"name": name, "site": site, "kind": "topk", "d_sae": width, "rows": ROWS})
    listed = {"path": f"{site}/{name}.sqlite", "site": site, "name": name, "kind": "topk", "d_sae": width}
    stores = [{**listed, "rows": ROWS, "alive": width, "bytes": store.stat().st_size}]
    parents = {"subject.activations": content, "subject.source.0": sweep.content}
    finish(run / "features", "features", {}, parents, {listed["path"]: entry(store)}, {"stores": stores})
    return run


def entry(path: Path) -> FileEntry:
    return FileEntry(path.stat().st_size, file_hash(path))


def write_store(path: Path, width: int, meta: dict) -> None:
    drawn = np.random.default_rng(0)
    shares = drawn.dirichlet(np.full(10, 0.5), width)
    with StoreWriter(path) as writer:
        writer.insert("vocabulary", [(t, f" word{t}" if t % 3 else f"<b>{t}") for t in range(VOCABULARY)], 2)
        tokens = drawn.integers(0, VOCABULARY, (CONTEXTS, LENGTH)).astype(np.int32)
        writer.insert("context", [(i, i // 8, i // 4, 0, row.tobytes()) for i, row in enumerate(tokens)], 5)
        for feature in range(width):
            one_feature(writer, drawn, feature, np.sort(shares[feature])[::-1], width)
        known = {"model": "synthetic", "split": "train", "signed": False, "negative": False, "coactive_rows": ROWS}
        writer.finish({**meta, **known, "direct_reason": "", "other_seeds": [], "alive": width, "dictionary": ""})


def one_feature(writer: StoreWriter, drawn: np.random.Generator, feature: int, shares: np.ndarray, width: int) -> None:
    active, largest = int(drawn.integers(40, 4000)), float(drawn.gamma(4, 4))
    mean = active * largest / 4 / ROWS
    top = drawn.choice(VOCABULARY, 10, replace=False)
    bins, histogram = bytes(8 * TOKEN_BINS), drawn.integers(0, 99, BINS).astype(np.int64).tobytes()
    numbers = (feature, active, active, active / ROWS, largest, 0.0, mean, 1.0, 9.0, 200.0, largest / 4, 500)
    rest = (int(top[0]), float(shares[0]), int(top[0]), 0.3, int(top[1]), 0.2, 0, None, None, None, None)
    writer.insert("feature", [(*numbers, *rest, histogram)], 24)
    ranked = list(enumerate(zip(top.tolist(), shares.tolist(), strict=True)))
    writer.insert("token", [(feature, i, t, active, share * mean * ROWS, bins) for i, (t, share) in ranked], 6)
    writer.insert("before", [(feature, i, t, active, share * mean * ROWS) for i, (t, share) in ranked], 5)
    writer.insert("direct", [(feature, side, i, t, side * share) for side in (-1, 1) for i, (t, share) in ranked], 5)
    writer.insert("neighbour", [(feature, i, (feature + i + 1) % width, 0.5 - i / 20) for i in range(5)], 4)
    chosen = iter(drawn.choice(CONTEXTS, 40, replace=False).tolist())
    examples = [(feature, group, part, i, next(chosen)) for group, part, count in GROUPS for i in range(count)]
    writer.insert("example", examples, 5)
    seen = []
    for context in sorted(row[4] for row in examples):
        positions = np.sort(drawn.choice(LENGTH, 5, replace=False)).astype(np.uint16)
        seen.append((feature, context, positions.tobytes(), drawn.gamma(2, 2, 5).astype(np.float32).tobytes()))
    writer.insert("activation", seen, 4)


def measure(run: Path, width: int) -> None:
    start = time.perf_counter()
    explorer = Explorer([run])
    built = time.perf_counter() - start
    listener = bind(0)
    server = uvicorn.Server(uvicorn.Config(app(explorer), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    key = next(iter(explorer.runs["run"].dictionaries))
    drawn = np.random.default_rng(1)
    plans = {
        "feature": lambda: f"/feature/{key}/{drawn.integers(width)}",
        "list, sorted": lambda: f"/features?sort={drawn.choice(['density', 'max', 'share', 'kurtosis'])}",
        "list, filtered": lambda: f"/features?low={drawn.uniform(0, 1e-3):.2g}&kind=mixed&sort=density&page=3",
        "list, by token": lambda: f"/features?token=%20word{drawn.integers(VOCABULARY)}",
        "search, a token": lambda: f"/search?q=word{drawn.integers(VOCABULARY)}",
        "search, a beginning": lambda: f"/search?q=word{drawn.integers(10, 99)}",
        "random": lambda: "/random",
    }
    store = next((run / "features").rglob("*.sqlite")).stat().st_size
    index = (run / "explorer.sqlite").stat().st_size
    sizes = f"{index / width:,.0f} bytes a feature; store {store / width:,.0f}"
    print(f"{width:,} features: index built in {built:.1f} s, {sizes}")
    connection = HTTPConnection("127.0.0.1", listener.getsockname()[1])
    for name, address in plans.items():
        times, sizes, packed = [], [], []
        for _ in range(ASKED):
            began = time.perf_counter()
            connection.request("GET", address())
            response = connection.getresponse()
            body = response.read()
            times.append(1000 * (time.perf_counter() - began))
            assert response.status in (200, 307), body
            sizes.append(len(body))
            packed.append(len(gzip.compress(body)))
        p50, p95 = np.percentile(times, [50, 95])
        said = f"  {name:20} p50 {p50:6.1f} ms   p95 {p95:6.1f} ms"
        print(f"{said}   {np.mean(sizes) / 1e3:6.1f} kB, {np.mean(packed) / 1e3:5.1f} gzipped")
    server.should_exit = True
    thread.join()


def measure_export(run: Path, width: int) -> None:
    Explorer([run])  # the index is measured by the other bench
    began, worked = time.perf_counter(), time.process_time()
    written = export(run, run.parent / "site", ExportConfig())
    seconds, worked = time.perf_counter() - began, time.process_time() - worked
    files = [path for path in written.folder.rglob("*") if path.is_file()]
    kinds = {"features": "data/feature", "list": "data/list", "search": "data/words"}
    print(
        f"{width:,} features: exported in {seconds:.0f} s ({1000 * worked / width:.1f} ms of the processor a feature)"
    )
    for name, folder in {**kinds, "all": ""}.items():
        held = [path for path in files if path.is_relative_to(written.folder / folder)]
        packed = sum(len(gzip.compress(path.read_bytes())) for path in held)
        size = sum(path.stat().st_size for path in held)
        said = f"{size / width / 1e3:6.2f} kB a feature on disk, {packed / width / 1e3:6.2f} gzipped"
        print(
            f"  {name:10} {said}, {len(held):,} files, the largest {max(p.stat().st_size for p in held) / 1e3:,.0f} kB"
        )
    paint(written.folder, width)


def paint(site: Path, width: int) -> None:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        print("  no browser here")
        return
    key = next((site / "data" / "feature").iterdir()).name
    drawn = np.random.default_rng(1)
    until = """() => new Promise((resolve) => { const look = () => document.querySelector("article.feature")
        ? requestAnimationFrame(() => setTimeout(() => resolve(performance.now()))) : setTimeout(look, 1); look(); })"""
    again = """(place) => new Promise((resolve) => { const began = performance.now(); location.hash = place;
        const look = () => document.querySelector("[data-feature]")?.dataset.feature === place
            ? requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - began))) : setTimeout(look, 1);
        look(); })"""
    times: dict[str, list[float]] = {"opened": [], "open": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        for _ in range(30):
            page.goto("about:blank")
            page.goto(f"{(site / 'feature.html').as_uri()}#{key}/{drawn.integers(width)}", wait_until="commit")
            times["opened"].append(page.evaluate(until))
            times["open"].append(page.evaluate(again, f"{key}/{drawn.integers(width)}"))
        browser.close()
    for name, milliseconds in times.items():
        p50, p95 = np.percentile(milliseconds, [50, 95])
        print(f"  a feature, {name:8} p50 {p50:6.1f} ms   p95 {p95:6.1f} ms")


if __name__ == "__main__":
    main()
