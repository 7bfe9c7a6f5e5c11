"""What the test server answers where its model cannot: mostly well, as a function of what is asked.

A tiny model writes nonsense. So explanations name the strongest token they are shown, lists and verdicts look for it
again, and some of all answers, drawn by the hash of the prompt, are of no use: the model's own nonsense, an empty text,
a list that is too short, a label at which no number is probable.
"""

import hashlib
import json
import re
from typing import Any

from monolex.interp.llm import prompts
from monolex.interp.records import Request

Chat = tuple[tuple[str, str], ...]
LIST = prompts.list_chat("", ())[0][1]
JUDGE = tuple(prompts.judge_chat("", (), marks=marks)[0][1] for marks in (False, True))
BAD = 20
"""One of so many lists is of no use in one way, and one in another; explanations are so four times as often."""


def luck(text: str, of: int) -> int:
    """A number below ``of`` that the text decides."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % of


def chat(messages: Chat) -> str | None:
    """An answer; None leaves it to the model."""
    system, user = messages[0][1], messages[-1][1]
    if system == LIST:
        return _list(user, "tokens", 10)
    if system in JUDGE:
        return _list(user, "fragments", 1)
    if messages[0][0] != "system":
        return None
    if prompts.ANSWER in system:
        (shown,) = re.findall(r'^1\. (".*")$', user.split("\nFragments on which it is silent")[0], re.M)
        word = json.loads(shown).split(prompts.MARKS[0])[1].split(prompts.MARKS[1])[0]
        return None if luck(user, BAD // 4) == 0 else f"Let me see.\n{prompts.ANSWER} the word '{word.strip()}'"
    lines = re.findall(r"^(.*)\t(\d+)$", user, re.M)
    word = max(lines, key=lambda line: int(line[1]))[0]
    return "  \n" if luck(user, BAD // 4) == 0 else f" the word '{word.strip()}'.\n"


def edited(request: Request, choice: dict[str, Any]) -> dict[str, Any]:
    """The choice of a completion, some of them without a number among the most probable labels, or at the last one."""
    fate = luck(request.prompt, BAD)
    if request.messages or fate > 3:
        return choice
    known = choice["logprobs"]["top_logprobs"]
    labels = [at for at, token in enumerate(choice["logprobs"]["tokens"]) if token == "\t"]
    first = 0 if fate == 0 or not labels else labels[-1]
    top = [
        entry and {text: p for text, p in entry.items() if at < first or not text.isdecimal()}
        for at, entry in enumerate(known)
    ]
    return choice | {"logprobs": choice["logprobs"] | {"top_logprobs": top}}


def _list(user: str, what: str, top: int) -> str | None:
    fate = luck(user, BAD)
    if fate == 0:
        return None
    head, _, rest = user.partition(f" {what}:")
    word = re.findall("'(.*)'", head)
    if what == "tokens":
        items = json.loads(rest)
    else:
        items = [json.loads(line.split(". ", 1)[1]) for line in rest.strip().splitlines()]
    numbers = [top if word and word[0] in item else luck(f"{user}{i}", top + 1) // 2 for i, item in enumerate(items)]
    return f"```json\n{json.dumps(numbers[1:] if fate == 1 else numbers)}\n```"
