"""The server: every page and its twin, who is refused, what no address reaches, and many askers at once."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import PIPE

import pytest
from helpers.explored import NAME, SITES, served
from helpers.fake_store import HOSTILE
from helpers.page_parser import Page

from monolex.errors import UserError
from monolex.explorer import assets
from monolex.explorer.guard import refusal
from monolex.explorer.index import FILE
from monolex.explorer.server import bind


@pytest.fixture(scope="module")
def key(server) -> str:
    run = server.explorer.runs["run"]
    return next(d.key for d in run.dictionaries.values() if d.title == f"{SITES[1]}/{NAME}")


def addresses(key: str) -> list[str]:
    feature = [f"/feature/{key}/3", f"/matches/{key}/3", f"/features?dictionary={key}&sort=density"]
    plain = ["/run/run", "/runs", "/features", "/search?q=cat", "/search", "/compare", "/labels"]
    other = f"/beside?a={key}/3&b={key}/4"
    return [
        *plain,
        other,
        "/causes/run",
        "/claims/run",
        *feature,
        "/causes/run/tree/root",
        "/causes/run/ablate/root",
        "/causes/run/score/rules",
    ]


def test_every_page_is_whole_and_has_a_twin(server, key):
    for address in addresses(key):
        answer = server.ask(address)
        assert answer.status == 200, (address, answer.text[-500:])
        Page(answer.text)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        path, mark, query = address.partition("?")
        twin = server.ask(f"{path}.json{mark}{query}")
        assert twin.status == 200 and isinstance(json.loads(twin.body, parse_constant=pytest.fail), dict)


def test_the_front_page_is_that_of_the_only_run(server):
    answer = server.ask("/")
    assert answer.status == 307 and answer.headers["location"] == "/run/run"
    answer = server.ask("/random")
    assert answer.status == 307 and answer.headers["location"].startswith("/feature/")
    assert server.ask("/random?kind=dead&state=alive").status == 404


def test_markup_in_tokens_and_labels_is_text(server, key):
    said = {"text": HOSTILE, "note": HOSTILE, "pinned": False}
    assert server.ask(f"/label/{key}/3", body=said).json["label"]["text"] == HOSTILE
    run = server.explorer.runs["run"]
    shown = [server.ask(address).text for address in (*addresses(key), f"/search?q={'%3Cimg'}")]
    shown += [server.ask(f"/feature/{key}/{n}").text for n in range(run.dictionary(key).d_sae)]
    assert sum("&lt;/script&gt;" in text for text in shown) > 3
    assert not any("<img" in text or 'onerror="' in text for text in shown)
    server.ask(f"/label/{key}/3", body={})


@pytest.mark.parametrize(
    "path",
    [
        "/run/run/gallery/../run.toml",
        "/run/run/gallery/..%2frun.toml",
        "/run/run/gallery/%2e%2e/%2e%2e/corpus.jsonl",
        "/run/run/gallery//etc/passwd",
        "/run/run/gallery/%2fetc%2fpasswd",
        "/run/..%2f..%2fetc/report.html",
        "/static/../explorer.py",
        "/static/..%2fhtml.py",
        "/static/%2e%2e%2fhtml.py",
        "/static/explorer.css%00.js",
        "/causes/run/..%2f..%2feval",
        "/causes/run/eval/../tree/root/../../activations",
        "/feature/../label",
        "/feature/%2e%2e/3",
        "/.env",
        "//etc/passwd",
        "/nothing",
    ],
)
def test_no_address_leads_out(server, path):
    answer = server.ask(path)
    assert answer.status in (400, 404) and b"Traceback" not in answer.body


def test_galleries_and_report_are_files_of_the_run(server, explored):
    assert server.ask("/run/run/report.html").status == 404
    (explored / "report.html").write_text("<!doctype html><title>r</title>")
    (explored / "gallery").mkdir()
    (explored / "gallery" / "a.html").write_text("<!doctype html><title>g</title>")
    (explored / "gallery" / "b.txt").write_text("no page")
    (explored / "gallery" / "c.html").symlink_to(explored.parent / "corpus.jsonl")
    try:
        assert "<title>r" in server.ask("/run/run/report.html").text
        answer = server.ask("/run/run/gallery/a.html")
        assert answer.status == 200 and "connect-src" not in answer.headers["content-security-policy"]
        assert [server.ask(f"/run/run/gallery/{name}").status for name in ("b.txt", "c.html", "none.html")] == [404] * 3
    finally:
        shutil.rmtree(explored / "gallery")
        (explored / "report.html").unlink()


def test_pages_of_other_sites_are_refused(server, key):
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1", "10.0.0.1"):
        assert server.ask("/features.json", headers={"host": host}).status == 403
    for host in (f"localhost:{server.port}", "127.0.0.1", "[::1]:80", "LOCALHOST"):
        assert server.ask("/features.json", headers={"host": host}).status == 200
    assert server.ask("/features.json", headers={"origin": "http://evil.example"}).status == 403
    assert server.ask("/features.json", headers={"origin": "null"}).status == 403
    assert (
        server.ask("/features.json", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}).status
        == 403
    )
    assert server.ask(f"/label/{key}/3", body={"text": "x"}, headers={"origin": "http://evil.example"}).status == 403
    assert server.ask(f"/label/{key}/3", method="POST").status == 403
    assert server.explorer.runs["run"].label(key, 3) is None


def test_a_link_from_elsewhere_may_be_followed_and_no_more():
    link = {
        "host": "127.0.0.1:1",
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "navigate",
        "sec-fetch-dest": "document",
    }
    assert refusal("GET", link) == "" and refusal("POST", link) != ""
    assert refusal("GET", link | {"sec-fetch-dest": "iframe"}) != ""
    assert refusal("GET", link | {"sec-fetch-site": "same-site"}) == ""
    assert refusal("POST", {"host": "127.0.0.1:1", "origin": "http://127.0.0.1:1"}) == ""
    assert refusal("POST", {"host": "127.0.0.1:1", "origin": "http://127.0.0.1:2"}) != ""


def test_what_is_wrong_is_one_sentence(server, key):
    for address, status in (("/features?sort=zzz", 400), (f"/feature/{key}/99999", 404), ("/compare?a=x&b=y", 404)):
        page = server.ask(address)
        assert page.status == status and 'role="alert"' in page.text
        path, _, query = address.partition("?")
        twin = server.ask(f"{path}.json?{query}")
        assert twin.status == status and twin.json["error"].count("\n") == 0
    for body in ([], "x", 3):
        assert server.ask(f"/label/{key}/3", body=body).status == 400
    assert server.ask(f"/label/{key}/3", body={"text": "\ud800"}).status == 400
    server.ask(f"/label/{key}/3", body={})


def test_styles_and_scripts_are_those_of_the_package(server):
    for name, asset in assets.ASSETS.items():
        answer = server.ask(f"/static/{name}")
        assert answer.body == asset.content and answer.headers["content-type"].startswith(asset.media)


def test_ten_askers_at_once_meet_no_lock(server, key):
    wrong = []

    def asks(number: int) -> None:
        for turn in range(12):
            address = (addresses(key) * 2)[(number + turn) % len(addresses(key))]
            answer = server.ask(address)
            label = server.ask(f"/label/{key}/{number}", body={"text": f"{number} {turn}", "pinned": bool(turn % 2)})
            wrong.extend(a.text for a in (answer, label) if a.status != 200)

    threads = [threading.Thread(target=asks, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    kept = {row["number"]: row["text"] for row in server.ask("/labels.json").json["labels"]}
    assert kept == {number: f"{number} 11" for number in range(10)}
    assert len(server.ask("/labels.jsonl").text.splitlines()) == 10
    for number in range(10):
        server.ask(f"/label/{key}/{number}", body={})


def test_a_store_that_is_damaged_or_gone_is_one_page(explored, tmp_path):
    run = Path(shutil.copytree(explored, tmp_path / "run", ignore=shutil.ignore_patterns(f"{FILE}*")))
    with served(run) as running:
        key = next(d.key for d in running.explorer.runs["run"].dictionaries.values() if d.gathered)
        path = run / "features" / f"{running.explorer.runs['run'].dictionary(key).title}.sqlite"
        path.write_bytes(path.read_bytes()[:4096] + b"\0" * (path.stat().st_size - 4096))
        answer = running.ask(f"/feature/{key}/0")
        assert answer.status == 400 and "damaged" in answer.text and 'role="alert"' in answer.text
        shutil.rmtree(run)
        running.explorer.runs["run"]._looked = -10.0
        answer = running.ask("/features")
        assert answer.status == 404 and "is gone" in answer.text


def test_a_port_that_is_taken_is_said():
    listener = bind(0)
    listener.listen()
    with pytest.raises(UserError, match="is taken; give another one by --port"):
        bind(listener.getsockname()[1])
    with pytest.raises(UserError, match="port = 70000"):
        bind(70_000)
    listener.close()


BUSY = """
import time
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from monolex.explorer.server import StoppingServer, bind
from monolex.interrupt import stoppable

def slow(request):
    print("asked", flush=True)
    time.sleep(60)

async def lifespan_told(_app):
    print(listener.getsockname()[1], flush=True)
    yield

listener = bind(0)
listener.listen()
with stoppable():
    app = Starlette(routes=[Route("/", slow)], lifespan=asynccontextmanager(lifespan_told))
    StoppingServer(app).run([listener])
"""


@pytest.mark.slow
def test_ctrl_c_ends_it_while_the_model_is_at_work():
    running = subprocess.Popen([sys.executable, "-c", BUSY], stdout=PIPE, stderr=PIPE, text=True)
    assert running.stdout and running.stderr
    try:
        with socket.create_connection(("127.0.0.1", int(running.stdout.readline())), timeout=30) as asker:
            asker.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert running.stdout.readline() == "asked\n"
            began = time.monotonic()
            running.send_signal(signal.SIGINT)
            assert running.wait(20) == 130 and time.monotonic() - began < 5
        assert running.stderr.read().count("\n") == 1
    finally:
        running.kill()
        running.communicate()
