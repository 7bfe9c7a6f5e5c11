"""An agent on the other end of stdin and stdout: known answers, and arguments that are nonsense."""

import hashlib
import json
import math
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest
import torch
from helpers.agent_questions import alike, questions
from helpers.explored import NAME, ROOT, SITES, strongest

from monolex.artifact import open_artifact
from monolex.explorer.explorer import Explorer
from monolex.explorer.views.search import HITS
from monolex.live.prompts import from_text
from monolex.live.reading import Wanted, read

pytest.importorskip("mcp", reason="the extra mcp is not installed")

from mcp import ClientSession, StdioServerParameters, stdio_client, types

from monolex.explorer.mcp import answer

pytestmark = pytest.mark.slow

PACKAGE = Path(__file__).parents[2]


class Asked(NamedTuple):
    """What a tool answered."""

    refused: bool
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text, parse_constant=pytest.fail)


Ask = Callable[[str, dict[str, Any]], Awaitable[Asked]]


@asynccontextmanager
async def agent(run: Path) -> AsyncIterator[tuple[ClientSession, Ask]]:
    """A client of a server of a run, in a process of its own."""
    command = ["-m", "monolex", "mcp", str(run)]
    path = os.pathsep.join([str(PACKAGE), os.environ.get("PYTHONPATH", "")])
    server = StdioServerParameters(command=sys.executable, args=command, env={**os.environ, "PYTHONPATH": path})
    with open(os.devnull, "w") as nowhere:
        async with stdio_client(server, errlog=nowhere) as streams, ClientSession(*streams) as session:
            await session.initialize()

            async def ask(tool: str, arguments: dict[str, Any]) -> Asked:
                answer = await session.call_tool(tool, arguments)
                (content,) = answer.content
                assert isinstance(content, types.TextContent)
                return Asked(bool(answer.is_error), content.text)

            yield session, ask


def state(run: Path) -> dict[str, tuple[int, str]]:
    """When each file of a run was changed, and its hash."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    facts = {p: (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files}
    return {path.relative_to(run).as_posix(): fact for path, fact in facts.items()}


@pytest.fixture(scope="module")
def keys(explored: Path) -> dict[str, str]:
    (run,) = Explorer([explored]).runs.values()
    return {dictionary.title: dictionary.key for dictionary in run.dictionaries.values()}


def test_an_agent_gets_right_answers_and_nothing_is_written(explored, keys):
    before = state(explored)
    wrong = []

    async def talk() -> None:
        async with agent(explored) as (session, ask):
            tools = (await session.list_tools()).tools
            assert 0 < len(tools) <= 12
            for tool in tools:
                assert tool.description and tool.input_schema["additionalProperties"] is False
                assert all(field["description"] for field in tool.input_schema["properties"].values())
                assert tool.annotations is not None and tool.annotations.read_only_hint
            for question in asked:
                told = await ask(question.tool, question.arguments)
                got = told.text if told.refused else question.looks(told.json)
                if not alike(got, question.answer):
                    wrong.append((question.says, got, question.answer))
            await live(ask, keys[ROOT], int(strongest(explored).rpartition(":")[2]))
            await nonsense(ask, keys)

    asked = list(questions(explored, keys))
    assert len(asked) == 30
    anyio.run(talk)
    assert wrong == []
    assert state(explored) == before


async def live(ask: Ask, key: str, number: int) -> None:
    """A prompt through the model: the feature is active, and without it something else is predicted."""
    hits = (await ask("find_by_prompt", {"run": "run", "prompt": "the cat sat on", "token": "any", "limit": 40})).json
    assert hits["source"]["path"] == "activations" and {"dictionary", "of_max", "dense"} <= set(hits["rows"][0])
    active = {row["feature"] for row in hits["rows"] if row["dictionary"] == key}
    assert active, "some feature is active"
    answer = (await ask("ablate_live", {"dictionary": key, "number": max(active), "prompt": "the cat sat on"})).json
    assert answer["kl"] >= 0 and answer["n"] == 1 and answer["reason"] and "control" in answer
    assert any(code > 0 for _, code in answer["active_on"])
    assert abs(sum(p for _, p in answer["before"])) <= 1 + 1e-6 and answer["source"]["path"] == "train/main"
    assert (await ask("ablate_live", {"dictionary": key, "number": number, "prompt": ""})).refused


STRANGE = (
    None, True, -1, 0, 2**31, 2**63, 10**30, 1.5, float(2**70), "", "a", "0" * 12, "'; DROP TABLE feature; --", '"',
    "*", "NEAR(a b)", "a OR b", "%", "\\", "../../etc/passwd", "/etc/passwd", "ablate/root/../../eval", "..", "run",
    "\x00", "x\0y", "漢字", "\U0001f600", "e\u0301", "\u202e", "<script>", "${x}", "{{7*7}}", "a" * 30_000, [],
    ["a", 3], {}, {"a": [1]}, [[[]]], "NaN", "Infinity", "resid_post.2", "single-token", "last", "causes_token",
)  # fmt: skip


async def nonsense(ask: Ask, keys: dict[str, str]) -> None:
    """Random arguments: an answer or one sentence, and the server goes on."""
    rng = random.Random(0)
    real = ("run", *keys.values(), SITES[1], NAME, "ablate/root", 3, " the", *STRANGE)
    names = {
        "runs": (), "dictionaries": ("run", "site", "trained", "page", "limit"),
        "features": ("run", "dictionary", "site", "kind", "marked", "token", "low", "high", "score", "sort",
                     "kurtosis", "page"),
        "search": ("text", "run", "limit"), "feature": ("dictionary", "number", "contexts", "tokens"),
        "matches": ("dictionary", "number", "limit"), "compare": ("first", "second", "limit"),
        "experiments": ("run", "path", "limit"), "find_by_prompt": ("run", "prompt", "token", "dictionaries"),
        "ablate_live": ("dictionary", "number", "prompt", "position", "top"),
        "what_is_known": ("claim", "dictionary", "feature", "token", "against", "share", "level", "experiment"),
    }  # fmt: skip
    refused = answered = 0
    for turn in range(220):
        tool = list(names)[turn % len(names)]
        chosen = [name for name in names[tool] if rng.random() < 0.7] + ["x" * rng.randrange(1, 4)] * (
            rng.random() < 0.1
        )
        answer = await ask(tool, {name: rng.choice(real) for name in chosen})
        if answer.refused:
            refused += 1
            assert "\n" not in answer.text and "Traceback" not in answer.text and len(answer.text) < 1000, answer.text
            assert "something went wrong" not in answer.text, (tool, chosen)
        else:
            answered += 1
            assert isinstance(answer.json, dict)
    assert refused > 60 and answered > 15
    assert not (await ask("runs", {})).refused


def test_what_no_tool_takes_is_one_sentence(explored):
    explorer = Explorer([explored], writable=False)
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("nothing", {}, "is no tool; there are runs"),
        ("featur", {}, "did you mean 'feature', 'features'"),
        ("runs", {"x": 1}, "x is no argument of this tool; it takes none"),
        ("feature", {"dictionary": "0" * 12}, "number is missing"),
        ("feature", {"dictionary": "0" * 12, "number": 0}, "is the hash of no dictionary here"),
        ("feature", {"dictionary": "0" * 12, "number": 1.5}, "number: input should be a valid integer"),
        ("features", {"limit": 101}, "limit = 101: give 1 to 100"),
        ("features", {"low": float("nan")}, "low: input should be a finite number"),
        ("search", {"text": "\ud800"}, "half of a character"),
        ("search", {"\ud800": 1, "text": ""}, "half of a character"),
    ]
    for tool, arguments, said in wrong:
        result = answer(explorer, tool, arguments)
        (content,) = result.content
        assert isinstance(content, types.TextContent)
        assert result.is_error and said in content.text and "\n" not in content.text, content.text
        content.text.encode("utf-8")


def told(explorer: Explorer, tool: str, **arguments: Any) -> Any:
    """The answer of a tool, in this process."""
    result = answer(explorer, tool, arguments)
    assert not result.is_error, result.content
    return result.structured_content


def test_a_control_is_as_much_as_is_taken_away(explored, keys):
    """Over all tokens up to the position, for the two are taken away at all of them; counted here from the weights."""
    explorer, prompt = Explorer([explored], writable=False), "the cat sat on the mat and the dog sat on the cat"
    live = explorer.live.of(explorer.runs["run"])
    weights = live.dictionary(ROOT).weights
    tokens = from_text(live, prompt)
    rows = read(live, tokens, Wanted((ROOT,), weights.d_sae)).features[ROOT]
    codes = torch.zeros(len(rows), weights.d_sae)
    for i, row in enumerate(rows):
        for active in row.top:
            codes[i, active.feature] = active.value
    controls = 0
    for position in (len(rows) // 2, len(rows) - 1):
        summed = codes[: position + 1].sum(0) * weights.W_dec.norm(dim=1)
        for number in codes[: position + 1].any(0).nonzero()[:, 0].tolist():
            last = int(codes[: position + 1, number].nonzero().max())
            asked = {"dictionary": keys[ROOT], "number": number, "prompt": prompt, "position": position, "top": 1}
            said = told(explorer, "ablate_live", **asked)
            assert "summed over the tokens up to the position" in said["control_rule"]
            assert said["size"] == pytest.approx(float(summed[number]), rel=1e-4)
            ratios = (summed / summed[number]).log().abs()
            ratios[(codes[last] == 0) | (summed == 0)] = math.inf
            ratios[number] = math.inf
            near = float(ratios.min())
            assert (said["control"] is None) == (near > math.log(2)), (number, position)
            if said["control"] is not None:
                controls += 1
                assert float(ratios[said["control"]["feature"]]) == pytest.approx(near, abs=1e-4)
                assert said["control"]["size"] == pytest.approx(float(summed[said["control"]["feature"]]), rel=1e-4)
    assert controls > 5


def test_features_are_turned_page_by_page_and_filtered_by_kurtosis(explored, keys):
    explorer = Explorer([explored], writable=False)
    only = {"dictionary": keys[ROOT], "sort": "kurtosis", "state": "all"}
    whole = told(explorer, "features", **only, limit=100)
    pages = [told(explorer, "features", **only, limit=7, page=page) for page in range(1, -(-whole["total"] // 7) + 1)]
    numbers = [row["number"] for row in whole["features"]]
    assert len(numbers) == whole["total"] > 14
    assert [row["number"] for page in pages for row in page["features"]] == numbers
    assert [page["page"] for page in pages] == list(range(1, len(pages) + 1))
    (run,) = explorer.runs.values()
    query = "SELECT number, kurtosis FROM feature WHERE dictionary = ? AND kurtosis IS NOT NULL ORDER BY 2"
    known = run.index.rows(query, (run.dictionary(keys[ROOT]).id,))
    least = known[len(known) // 2][1]
    kept = told(explorer, "features", **only, limit=100, kurtosis=least)
    wanted = {number: value for number, value in known if value >= least}
    assert {row["number"]: row["kurtosis"]["value"] for row in kept["features"]} == pytest.approx(wanted)
    refused = answer(explorer, "features", {"page": 0})
    assert refused.is_error and "page = 0" in str(refused.content)


def test_a_search_that_may_be_cut_has_no_total(explored):
    explorer = Explorer([explored], writable=False)
    (run,) = explorer.runs.values()
    query = "SELECT text, count(*) FROM token GROUP BY text ORDER BY 2"
    (rare, _), *_, (common, many) = run.index.rows(query)
    assert many > HITS
    said = told(explorer, "search", text=common, limit=100)
    assert said["total"] is None and said["at_least"] == len(said["features"]) == HITS
    said = told(explorer, "search", text=rare, limit=100)
    assert said["total"] == said["at_least"] == len(said["features"]) > 0


def test_what_is_said_of_a_feature_names_its_dictionary_and_what_it_lacks(explored, keys):
    explorer = Explorer([explored], writable=False)
    (run,) = explorer.runs.values()
    said = told(explorer, "find_by_prompt", run="run", prompt="the cat sat on", token="any")
    for row in said["rows"]:
        dictionary = run.dictionary(row["dictionary"])
        assert row["hash"] == dictionary.hash and row["title"] == dictionary.title
    sources = {each["hash"]: each["source"] for each in said["dictionaries"]}
    assert set(sources) == {row["hash"] for row in said["rows"]}
    for each in sources.values():
        assert each["content"] == open_artifact(explored / each["path"]).content
    assert said["n"] == 1 and "no interval" in said["reason"] and "control" in said["reason"]
    evidence = told(explorer, "feature", dictionary=keys[ROOT], number=3)["evidence"]
    assert evidence["source"]["content"] == open_artifact(explored / "features").content
    assert "no interval" in evidence["reason"]
    for name, measure in (("similar", "cosine"), ("active_together", "jaccard"), ("promotes_directly", "logit")):
        assert all(isinstance(each[measure], float) for each in evidence[name])
    assert evidence["similar"]
