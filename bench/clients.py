"""Ten clients of the explorer for a minute, while a prompt is tried live and goes on being continued.

    python bench/clients.py RUN [SECONDS]

`monolex serve` runs in a process of its own. Eight clients read pages and their twins at random over HTTP, one writes
labels and reads them again, one tries prompts and their layers by tokens; beside them a continuation is streamed all
the time. RUN's index gets no label that it did not have. Printed: answers that were no 200 (or a redirect), locks that
were met, milliseconds at the median and the 95th percentile, and tokens that were streamed.
"""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import numpy as np

READERS = 8
TEXTS = ("def get(self, key):\n    if key not", "import os\nimport sys", "for i in range(10):", "The quick brown")


class Client:
    """One connection after another, as browsers do; what came back is counted."""

    def __init__(self, host: str, seed: int) -> None:
        self.host = host
        self.drawn = random.Random(seed)
        self.times: dict[str, list[float]] = defaultdict(list)
        self.wrong: Counter[str] = Counter()
        self.tokens = 0
        self._connection = HTTPConnection(host, timeout=120)

    def ask(self, name: str, address: str, body: Any = None) -> bytes:
        """The body of an answer; its time is kept under a name."""
        head = {"origin": f"http://{self.host}", "content-type": "application/json"} if body is not None else {}
        began = time.perf_counter()
        try:
            self._connection.request(
                "GET" if body is None else "POST", address, None if body is None else json.dumps(body), head
            )
            answer = self._connection.getresponse()
            content = answer.read()
        except OSError as error:
            self.wrong[f"{name}: {error!r}"] += 1
            self._connection.close()
            return b""
        self.times[name].append(1000 * (time.perf_counter() - began))
        if answer.status not in (200, 303, 307):
            locked = " (locked)" if b"being written by another" in content or b"locked" in content else ""
            self.wrong[f"{name}: {answer.status}{locked} {address}"] += 1
        self.tokens += content.count(b'"token": {') if name == "streamed prompt" else 0
        return content


def main() -> None:
    run, seconds = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    command = [sys.executable, "-m", "monolex", "serve", run, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None, "it is a pipe"
            host = urlsplit(json.loads(server.stdout.readline())["address"]).netloc
            report(*measure(host, seconds), seconds)
        finally:
            server.send_signal(signal.SIGINT)


def addresses(
    slug: str, feature: Callable[[Client], str], pairs: list[list[str]], experiments: list[str]
) -> dict[str, Callable[[Client], str]]:
    """What is read, by the kind of page; ``feature`` draws one, ``pairs`` are dictionaries of a space each."""
    return {
        "/run": lambda _: f"/run/{slug}",
        "/feature": lambda c: f"/feature/{feature(c)}",
        "/matches": lambda c: f"/matches/{feature(c)}",
        "/features": lambda c: (
            f"/features?sort={c.drawn.choice(['density', 'score', 'max'])}&page={c.drawn.randint(1, 5)}"
        ),
        "/search": lambda c: f"/search?q={c.drawn.choice(['def', 'self', 'in', 'the', 'import', 're'])}",
        "/beside": lambda c: f"/beside?a={feature(c)}&b={feature(c)}",
        "/compare": lambda c: "/compare?a={}&b={}".format(*c.drawn.sample(c.drawn.choice(pairs), 2)),
        "/claims": lambda _: f"/claims/{slug}",
        "/causes": lambda _: f"/causes/{slug}",
        "/causes/one": lambda c: f"/causes/{slug}/{c.drawn.choice(experiments)}",
        "/labels": lambda _: "/labels",
        "/runs": lambda _: "/runs",
    }


def measure(host: str, seconds: float) -> tuple[list[Client], list[str]]:
    """The clients after their time, and the kinds of pages there are."""
    first = Client(host, 0)
    listed = json.loads(first.ask("first", "/features.json"))["dictionaries"]
    slug = listed[0]["run"]
    features = {d["key"]: d["d_sae"] for d in listed}
    experiments = json.loads(first.ask("first", f"/causes/{slug}.json"))["experiments"]
    pairs = [list(space) for space in json.loads(first.ask("first", "/compare.json"))["offered"].values()]
    # the model is loaded once, before the clock starts
    first.ask("first", "/prompt?text=warm")

    def feature(client: Client) -> str:
        key = client.drawn.choice(list(features))
        return f"{key}/{client.drawn.randrange(features[key])}"

    pages = addresses(slug, feature, pairs, [experiment["path"] for experiment in experiments])

    def read(client: Client) -> None:
        name = client.drawn.choice(list(pages))
        address = pages[name](client)
        path, mark, query = address.partition("?")
        client.ask(name, f"{path}.json{mark}{query}" if client.drawn.random() < 0.3 else address)

    def write(client: Client) -> None:
        place = feature(client)
        before = json.loads(client.ask("/feature twin", f"/feature/{place}.json") or b"{}").get("label")
        if before is None:
            client.ask(
                "label", f"/label/{place}", {"text": f"seen {client.drawn.random()}", "note": "", "pinned": False}
            )
            client.ask("label", f"/label/{place}", {})

    def prompt(client: Client) -> None:
        page = client.drawn.choice(["/prompt", "/grid"])
        client.ask(page, f"{page}.json?text={client.drawn.choice(['a', 'if', 'class'])}+{client.drawn.randrange(99)}")

    def stream(client: Client) -> None:
        query = {"text": client.drawn.choice(TEXTS), "edits": f"{feature(client)}:ablate"}
        client.ask("streamed prompt", "/continue", {"query": query, "max_new_tokens": 64})

    roles = [*[read] * READERS, write, prompt, stream]
    clients = [Client(host, 1 + number) for number in range(len(roles))]
    until = time.monotonic() + seconds

    def live(role: Callable[[Client], None], client: Client) -> None:
        while time.monotonic() < until:
            role(client)

    threads = [threading.Thread(target=live, args=each) for each in zip(roles, clients, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [first, *clients], [*pages, "/feature twin", "label", "/prompt", "/grid", "streamed prompt"]


def report(clients: list[Client], names: list[str], seconds: float) -> None:
    wrong = sum((client.wrong for client in clients), Counter())
    locks = sum(count for said, count in wrong.items() if "locked" in said)
    asked = sum(len(times) for client in clients for times in client.times.values())
    tokens = sum(client.tokens for client in clients)
    said = f"{asked:,} answers in {seconds:.0f} s: {sum(wrong.values())} errors, {locks} locks"
    print(f"{said}; {tokens:,} tokens streamed")
    for text, count in wrong.most_common(20):
        print(f"  {count} × {text}")
    for name in names:
        times = [each for client in clients for each in client.times[name]]
        if times:
            p50, p95 = np.percentile(times, [50, 95])
            print(f"  {name:16} {len(times):5,}   p50 {p50:7.1f} ms   p95 {p95:7.1f} ms")


if __name__ == "__main__":
    main()
