"""The routes of the explorer: a page a view, its twin under the same address with ``.json``, and the live prompt.

Views are plain functions that read artefacts; here they are only called, drawn and sent. What a user can mend becomes
a page of one sentence.
"""

import contextlib
import json
import logging
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from monolex.answers import as_json
from monolex.errors import UserError
from monolex.explorer import assets
from monolex.explorer.draw import drawn
from monolex.explorer.explorer import Explorer
from monolex.explorer.guard import REPORT_POLICY, Guard
from monolex.explorer.links import JSON, Links
from monolex.explorer.page import Page
from monolex.explorer.run import NotThere
from monolex.explorer.views import (
    beside,
    causes,
    claims,
    compare,
    feature,
    find,
    listing,
    marks,
    matches,
    overview,
    prompt,
    search,
)
from monolex.pages import html
from monolex.report.features_section import GALLERY

log = logging.getLogger("monolex")
THREADS = 8
"""Requests that are answered at a time: each has its own connection to every index."""
LIVE_THREADS = 2
"""Requests of the model that are under way at a time; others wait for these alone."""
NEED_MODEL = ("ids", "text", "chat", "prompt", "a", "b")
"""Parameters of pages with which the model runs."""
View = Callable[[Explorer, Request], Page]


def app(explorer: Explorer) -> Starlette:
    """The application that serves ``explorer``."""

    @asynccontextmanager
    async def few_threads(_app: Starlette) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield

    routes = [route for path, view in VIEWS.items() for route in _pages(explorer, path, view)]
    routes += [
        Route("/", lambda request: _home(explorer, request)),
        Route("/random", _answering(explorer, _random)),
        *_live_pages(explorer),
        Route("/continue", _continuing(explorer), methods=["POST"]),
        Route("/labels.jsonl", _answering(explorer, _labels)),
        Route("/label/{key}/{number}", _writing(explorer), methods=["POST"]),
        Route("/run/{slug}/report.html", _answering(explorer, _report)),
        Route("/run/{slug}/gallery/{path:path}", _answering(explorer, _gallery)),
        Route("/static/{name}", _static),
    ]
    middleware = [Middleware(Guard), Middleware(GZipMiddleware, minimum_size=1024)]
    handlers: Mapping[Any, Any] = {HTTPException: _not_found, UserError: _failed, Exception: _broken}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=few_threads)


VIEWS: dict[str, View] = {
    "/run/{slug}": lambda explorer, request: overview.overview(explorer, request.path_params["slug"]),
    "/features": lambda explorer, request: listing.listing(explorer, _parameters(request)),
    "/feature/{key}/{number}": lambda explorer, request: feature.feature(explorer, *_place(request)),
    "/matches/{key}/{number}": lambda explorer, request: matches.matches(explorer, *_place(request)),
    "/search": lambda explorer, request: search.search(explorer, _parameters(request)),
    "/compare": lambda explorer, request: compare.compare(explorer, _parameters(request)),
    "/beside": lambda explorer, request: beside.beside(explorer, _parameters(request)),
    "/causes/{slug}": lambda explorer, request: causes.causes(explorer, request.path_params["slug"]),
    "/causes/{slug}/{path:path}": lambda explorer, request: causes.experiment(
        explorer, request.path_params["slug"], request.path_params["path"]
    ),
    "/claims/{slug}": lambda explorer, request: claims.claims(explorer, request.path_params["slug"]),
    "/labels": lambda explorer, _request: marks.marks(explorer),
    "/runs": lambda explorer, _request: overview.runs(explorer),
}
"""A view a page; ``ADDRESS.json`` is its twin."""


def _pages(explorer: Explorer, path: str, view: View) -> list[Route]:
    """The routes of a page and of its twin."""

    def page_of(request: Request) -> Response:
        explorer.refresh()
        return _html(drawn(explorer, view(explorer, request), _address(request)))

    def twin_of(request: Request) -> Response:
        explorer.refresh()
        return JSONResponse(as_json(view(explorer, request).data))

    return [Route(path + JSON, twin_of), Route(path, page_of)]


def _live_pages(explorer: Explorer) -> list[Route]:
    """Pages that wait for the model: by threads of their own, so that all other pages go on."""
    busy = anyio.CapacityLimiter(LIVE_THREADS)

    def route(path: str, view: Callable[[Explorer, Mapping[str, str]], Page], ending: str) -> Route:
        async def endpoint(request: Request) -> Response:
            def answer() -> Response:
                explorer.refresh()
                parameters = _parameters(request)
                if ending:
                    return JSONResponse(as_json(view(explorer, parameters).data))
                if path == "/prompt" and (exact := prompt.exact_address(explorer, parameters, Links())):
                    return RedirectResponse(exact, 303)
                return _html(drawn(explorer, view(explorer, parameters), _address(request)))

            # a form that is still empty needs no model and waits for nobody
            asked_model = any(request.query_params.get(name) for name in NEED_MODEL)
            return await anyio.to_thread.run_sync(answer, limiter=busy if asked_model else None)

        return Route(path + ending, endpoint)

    views = {"/prompt": prompt.prompt_page, "/grid": prompt.grid_page, "/find": find.find_page}
    return [route(path, view, ending) for path, view in views.items() for ending in (JSON, "")]


def _continuing(explorer: Explorer) -> Callable[[Request], Any]:
    """A continuation, an event of the server a token; what ends it early is one too."""
    busy = anyio.CapacityLimiter(LIVE_THREADS)

    async def endpoint(request: Request) -> Response:
        said, gone = await _json(request), threading.Event()
        events = await anyio.to_thread.run_sync(prompt.continuation, explorer, said, gone.is_set, limiter=busy)

        def following() -> dict[str, Any] | None:
            try:
                return next(events, None)
            except UserError as error:
                return {"error": str(error)}

        async def lines() -> AsyncIterator[str]:
            try:
                while (event := await anyio.to_thread.run_sync(following, limiter=busy)) is not None:
                    yield f"data: {json.dumps(event)}\n\n"
            finally:
                # whoever asked has gone: the model is given back at the next token
                gone.set()
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(_exhaust, events, limiter=busy)

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    return endpoint


def _exhaust(events: Iterator[Any]) -> None:
    with contextlib.suppress(UserError):
        for _ in events:
            pass


def _answering(explorer: Explorer, answer: Callable[[Explorer, Request], Response]) -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:
        explorer.refresh()
        return answer(explorer, request)

    return endpoint


def _home(explorer: Explorer, request: Request) -> Response:
    if len(explorer.runs) == 1:
        return RedirectResponse(Links().run(next(iter(explorer.runs))))
    return _html(drawn(explorer, overview.runs(explorer), _address(request)))


def _random(explorer: Explorer, request: Request) -> Response:
    """To a feature that the list's filters keep, drawn at random."""
    query = listing.parsed(_parameters(request))
    runs = listing.scope(explorer, query)
    # a run with more of them is drawn as much more often, so that every feature has the same chance
    weights = [listing.count(run, query) for run in runs]
    if sum(weights):
        (run,) = random.choices(runs, weights)
        if place := listing.drawn_at_random(run, query):
            return RedirectResponse(Links().feature(place[0][:12], place[1]), headers={"cache-control": "no-store"})
    raise NotThere("no feature is like this; widen the filters")


def _labels(explorer: Explorer, _request: Request) -> Response:
    head = {"content-disposition": 'attachment; filename="labels.jsonl"'}
    return Response("".join(marks.lines(explorer)), media_type="application/jsonl", headers=head)


def _writing(explorer: Explorer) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        said = await _json(request)
        key, number = _place(request)
        label = await anyio.to_thread.run_sync(marks.keep, explorer, key, number, said)
        return JSONResponse({"label": as_json(label)})

    return endpoint


async def _json(request: Request) -> Mapping[str, Any]:
    try:
        said = await request.json()
    except (ValueError, RecursionError) as error:
        raise UserError("the request holds no JSON; send an object") from error
    if not isinstance(said, dict):
        raise UserError("the request holds no object of JSON; send one")
    return said


def _report(explorer: Explorer, request: Request) -> Response:
    run = explorer.run(request.path_params["slug"])
    if not (run.folder / "report.html").is_file():
        raise NotThere(f"{run.slug} has no report yet; write it: monolex report {run.folder}")
    return _file(run.folder / "report.html")


def _gallery(explorer: Explorer, request: Request) -> Response:
    path = request.path_params["path"].replace("\0", "")
    home = (explorer.run(request.path_params["slug"]).folder / GALLERY).resolve()
    file = Path(home, path).resolve()
    # neither dots, a path from the root nor a link leads out of the run
    if not file.is_relative_to(home) or file.suffix != ".html" or not file.is_file():
        raise NotThere(f"{path!r} is no gallery of this run; look at the report for those that there are")
    return _file(file)


def _file(path: Path) -> Response:
    head = {"content-security-policy": REPORT_POLICY}
    return FileResponse(path, media_type="text/html; charset=utf-8", headers=head, content_disposition_type="inline")


def _static(request: Request) -> Response:
    content = assets.ASSETS.get(request.path_params["name"])
    if content is None:
        raise HTTPException(404)
    return Response(content.content, media_type=content.media, headers={"cache-control": "max-age=31536000, immutable"})


def _place(request: Request) -> tuple[str, int]:
    number = request.path_params["number"]
    if not (number.isdecimal() and number.isascii() and len(number) < 10):
        raise NotThere(f"{number[:20]!r} is no number of a feature")
    return request.path_params["key"], int(number)


def _parameters(request: Request) -> dict[str, str]:
    """Of the address, each once: the last one where it stands there twice."""
    return dict(request.query_params.items())


def _address(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def _html(content: str, status: int = 200) -> Response:
    return Response(content, status, media_type="text/html")


def _not_found(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    return _refused(request, "there is no such page; look from the front page" if status == 404 else str(error), status)


def _failed(request: Request, error: Exception) -> Response:
    return _refused(request, str(error), 404 if isinstance(error, NotThere) else 400)


def _broken(request: Request, error: Exception) -> Response:
    log.error("%s: %r", request.url.path, error, exc_info=error)
    return _refused(request, "something went wrong here; the terminal that runs monolex serve says what", 500)


def _refused(request: Request, sentence: str, status: int) -> Response:
    """One sentence, as the asker reads: JSON of a twin or of a script, a page otherwise."""
    if request.url.path.endswith(JSON) or request.method != "GET":
        return JSONResponse({"error": sentence}, status)
    if "text/html" not in request.headers.get("accept", "text/html"):
        return PlainTextResponse(sentence, status)
    return _html(html.page("explorer/error.html", sentence=sentence, status=status, links=Links()), status)
