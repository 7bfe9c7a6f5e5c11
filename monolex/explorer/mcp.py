"""``monolex mcp``: the tools of :mod:`monolex.explorer.agent` over the Model Context Protocol, on stdin and stdout.

No port is opened, nothing but the protocol is printed, and the runs are never written to.
"""

import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from monolex import __version__
from monolex.errors import UserError, nearest
from monolex.explorer.agent.tools import TOOLS
from monolex.explorer.explorer import Explorer

try:
    from mcp import types
    from mcp.server.lowlevel import Server
    from mcp.server.stdio import stdio_server

    from monolex.explorer.agent.arguments import read, schema
except ModuleNotFoundError as missing:
    raise UserError("monolex mcp needs the mcp package: pip install 'monolex[mcp]'") from missing

log = logging.getLogger("monolex")
INSTRUCTIONS = (
    "Sparse dictionaries of a language model: features, what they respond to, what they cause. Begin with the tool "
    "runs. Every answer names the artefact it was read off by its hash, and numbers stand beside their interval and "
    "their control, chance or baseline; where one of these is null it was not measured. A name, an explanation or a "
    "search hit is no evidence: ask what_is_known, which also says contradicted, undecided and not measured."
)
AT_ONCE = 4
"""Questions that are answered at a time."""


def serve(folders: Sequence[Path]) -> None:
    """Answer an agent on stdin and stdout until it goes.

    Raises:
        UserError: no run, or a damaged one.
    """
    anyio.run(_serve, server(Explorer(folders, writable=False)))


def server(explorer: Explorer) -> Server[Any]:
    """The server of the tools, for any pair of streams."""

    async def tools(_context: Any, _page: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=listed())

    async def call(_context: Any, asks: types.CallToolRequestParams) -> types.CallToolResult:
        # an answer that is not waited for any longer is dropped when it is there: nothing waits for it
        work = partial(answer, explorer, asks.name, asks.arguments or {})
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=limiter)

    limiter = anyio.CapacityLimiter(AT_ONCE)
    return Server("monolex", version=__version__, instructions=INSTRUCTIONS, on_list_tools=tools, on_call_tool=call)


def listed() -> list[types.Tool]:
    """Every tool as the protocol describes it."""
    hints = types.ToolAnnotations(read_only_hint=True, idempotent_hint=True, open_world_hint=False)
    return [
        types.Tool(
            name=name,
            description=inspect.cleandoc(tool.answer.__doc__ or ""),
            input_schema=schema(tool.question),
            annotations=hints,
        )
        for name, tool in TOOLS.items()
    ]


def answer(explorer: Explorer, name: str, arguments: Mapping[str, Any]) -> types.CallToolResult:
    """The answer of a tool as JSON, or one sentence on what is wrong with the question."""
    try:
        if name not in TOOLS:
            raise UserError(f"{name[:50]!r} is no tool; {nearest(name[:50], list(TOOLS))}")
        tool = TOOLS[name]
        asks = read(tool.question, arguments)
        explorer.refresh()
        value = tool.answer(explorer, asks)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return types.CallToolResult(content=[types.TextContent(type="text", text=text)], structured_content=value)
    except UserError as error:
        return _refused(str(error))
    except Exception as error:
        log.error("%s: %r", name, error, exc_info=error)
        return _refused("something went wrong here; the log of monolex mcp, on stderr, says what")


def _refused(sentence: str) -> types.CallToolResult:
    # what was asked may hold halves of characters, which no stream can carry
    text = sentence.encode("utf-8", "replace").decode("utf-8")
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)], is_error=True)


async def _serve(tools: Server[Any]) -> None:
    async with stdio_server() as (incoming, outgoing):
        await tools.run(incoming, outgoing, tools.create_initialization_options())
