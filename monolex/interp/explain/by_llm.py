"""Explanations by language models: OpenAI's protocol, and a modern prompt with marked fragments and silent ones."""

from collections.abc import Sequence

from monolex.interp.config import ExplainConfig
from monolex.interp.llm.answers import EMPTY, answered
from monolex.interp.llm.prompts import ANSWER, OPENING, Chat, examples_chat, explanation_chat
from monolex.interp.records import Client, Examples, Explanation, Failure, Request

REPLY_TOKENS = 200
"""Of an explanation, unless the configuration says otherwise: several times what one takes."""
NOT_ASKED = Failure("no fragment on which the feature is active")
"""Nothing to show, nothing to ask."""


def explain_openai(examples: Sequence[Examples], client: Client, config: ExplainConfig) -> list[Explanation | Failure]:
    """`openai`: one sentence from tokens with activations; an empty answer is a failure."""
    answers = _ask([explanation_chat(of_feature.explain) for of_feature in examples], examples, client, config)
    return [_explanation("openai", answer) for answer in answers]


def explain_examples(
    examples: Sequence[Examples], client: Client, config: ExplainConfig
) -> list[Explanation | Failure]:
    """`examples`: one line from fragments with marked tokens and silent ones; without that line it is a failure."""
    answers = _ask([examples_chat(of_feature) for of_feature in examples], examples, client, config)
    return [_explanation("examples", answer if isinstance(answer, Failure) else _answer(answer)) for answer in answers]


def _ask(
    chats: Sequence[Chat], examples: Sequence[Examples], client: Client, config: ExplainConfig
) -> list[str | Failure]:
    """What is answered; features that have nothing to show are failures and are not asked for."""
    limit = REPLY_TOKENS if config.reply_tokens is None else config.reply_tokens
    params = (("max_tokens", limit), ("temperature", config.temperature))
    shown = [number for number, of_feature in enumerate(examples) if of_feature.explain and of_feature.maximum > 0]
    answers: list[str | Failure] = [NOT_ASKED] * len(examples)
    replies = client.ask([Request(chats[number], params=params) for number in shown])
    for number, reply in zip(shown, replies, strict=True):
        answers[number] = reply if isinstance(reply, Failure) else answered(reply)
    return answers


def _answer(text: str) -> str | Failure:
    """What stands behind the last marker."""
    _, marker, answer = text.rpartition(ANSWER)
    return answer.strip("* ") if marker else Failure(f"no line that begins with {ANSWER}")  # some print it in bold


def _explanation(explainer: str, answer: str | Failure) -> Explanation | Failure:
    """One line, without the beginning that prompts add."""
    if isinstance(answer, Failure):
        return answer
    text = " ".join(answer.split())
    if text.lower().startswith(OPENING):
        text = text[len(OPENING) :].strip()
    return Explanation(explainer, text) if text else EMPTY
