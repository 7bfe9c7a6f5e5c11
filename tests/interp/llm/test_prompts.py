"""Prompts: the structure of the protocol, built by hand; what is marked, left out and kept from simulators."""

import json

import numpy as np
import pytest
from helpers.scripted import examples, fragment

from monolex.interp.llm import prompts
from monolex.interp.llm.few_shots import SHOTS
from monolex.interp.llm.prompts import UNKNOWN, PromptLine
from monolex.text.characters import alone

DENSE = fragment((" the", 0.0), (" Rhine", 3.0), ("\n", 0.29), ("\t", 2.9999))
SPARSE = fragment(*[("x", -1.0)] * 11, (" Elbe", 6.0))


def shown(name: str, *blocks: list[str]) -> str:
    """A records block by hand."""
    return (
        name + "\n<start>\n" + "<end>\n<start>\n".join("".join(line + "\n" for line in b) for b in blocks) + "<end>\n"
    )


def test_worked_examples_have_the_lengths_of_the_protocol():
    assert [[len(record.tokens) for record in shot.records] for shot in SHOTS] == [[34, 22], [21, 37], [11, 21]]
    for shot in SHOTS:
        assert len(shot.revealed) == len(shot.records) == 2
        assert not shot.explanation.endswith(".")
        for record, revealed in zip(shot.records, shot.revealed, strict=True):
            assert len(record.activations) == len(record.tokens) > revealed
            assert any(value > 0 for value in record.activations[revealed:]), "something is shown to be active"
            assert "~" not in "".join(record.tokens) and "|" not in "".join(record.tokens)
    shares = [np.mean([value > 0 for record in shot.records for value in record.activations]) for shot in SHOTS]
    assert [bool(share < prompts.SPARSE) for share in shares] == [True, True, False]


def test_an_explainer_sees_tokens_with_activations_behind_three_worked_examples():
    chat = prompts.explanation_chat([DENSE, fragment((" a", -5.0), (" b", 1.5))])
    assert [role for role, _ in chat] == ["system", *("user", "assistant") * 3, "user"]
    assert "0 to 10" in chat[0][1]
    lines = [" the\t0", " Rhine\t10", "\n\t0", "\t\t9"], [" a\t0", " b\t5"]
    ask = f"\nWhat feature 4 responds to: {prompts.OPENING}"
    assert chat[-1][1] == shown("\n\nFeature 4\nActivations:", *lines) + ask
    for number, shot in enumerate(SHOTS, 1):
        user, assistant = (text for _, text in chat[2 * number - 1 : 2 * number + 1])
        assert user.startswith(f"\n\nFeature {number}\nActivations:\n<start>\n")
        assert user.endswith(f"\nWhat feature {number} responds to: {prompts.OPENING}")
        assert assistant == f" {shot.explanation}."
    assert (" main\t4\nsail\t10\n" in chat[5][1]) and ("Once more" not in chat[5][1])


def test_sparse_features_are_shown_again_without_silent_tokens():
    text = prompts.explanation_chat([SPARSE, fragment((" Oder", 1.2), (" y", 0.5))])[-1][1]
    every = ["x\t0"] * 11 + [" Elbe\t10"], [" Oder\t2", " y\t0"]
    again = shown("\nOnce more, without the tokens at 0:", [" Elbe\t10"], [" Oder\t2"])
    end = f"\nWhat feature 4 responds to: {prompts.OPENING}"
    assert text == shown("\n\nFeature 4\nActivations:", *every) + again + end
    # 1 of 5 is no share below 0.2; a number that is rounded down to 0 does not count
    at = prompts.explanation_chat([fragment(("a", 1.0), ("b", 0.05), ("c", 0.0), ("d", 0.0), ("e", 0.0))])[-1][1]
    below = prompts.explanation_chat([fragment(("a", 1.0), *[("b", 0.05)] * 5)])[-1][1]
    assert ("Once more" not in at) and ("Once more" in below)


@pytest.mark.parametrize("top", [10, 9])
def test_a_simulator_sees_some_activations_of_the_worked_examples(top: int):
    start = prompts.simulation_start(top)
    assert isinstance(start[0], str) and start[0].endswith("\n") and f"0 to {top}" in start[0]
    lines = [part for part in start if isinstance(part, PromptLine)]
    at = 0
    for shot in SHOTS:
        maximum = max(value for record in shot.records for value in record.activations)
        for record, revealed in zip(shot.records, shot.revealed, strict=True):
            for i, (token, value) in enumerate(zip(record.tokens, record.activations, strict=True)):
                wanted = UNKNOWN if i < revealed else str(int(top * value / maximum))
                assert lines[at] == (token, wanted)
                at += 1
    assert at == len(lines)
    text = prompts.written(start)
    first = f"\n\n\nFeature 1\nWhat feature 1 responds to: {prompts.OPENING} {SHOTS[0].explanation}"
    assert (
        f"{first}\nActivations: \n<start>\nThe\tunknown\n new\t" in text
        and text.count("<start>\n") == text.count("<end>\n") == 6
    )
    assert text.endswith(" back\t0\n.\t0\n<end>\n\n")


def test_a_simulator_is_asked_for_every_token():
    end = prompts.simulation_end("  rivers \n", [" a", "\t", "", "\n", "unknown"])
    assert prompts.written(end) == (
        f"\n\nFeature 4\nWhat feature 4 responds to: {prompts.OPENING} rivers\nActivations: \n<start>\n"
        " a\tunknown\n\t\tunknown\n\tunknown\n\n\tunknown\nunknown\tunknown\n<end>\n"
    )


def test_examples_are_marked_above_a_share_of_the_maximum():
    strong = fragment((" the", 0.0), (" Rh", 4.0), ("ine", 3.1), (" in", 3.0), ("\n", 0.5), (" May", 10.0))
    silent = fragment((" no", -1.0), (" «", 0.0))
    system, user = prompts.examples_chat(examples([strong], [silent]))
    assert system[0] == "system" and user[0] == "user"
    _, fragment_line, pairs, _, _, quiet = user[1].split("\n")
    assert json.loads(fragment_line.removeprefix("1. ")) == " the« Rhine» in\n« May»"
    assert pairs.strip() == '(" Rh", 4), ("ine", 3), (" in", 3), (" May", 10)'
    assert json.loads(quiet.removeprefix("1. ")) == " no «"
    assert prompts.ANSWER in system[1] and "silent" not in prompts.examples_chat(examples([strong]))[1][1]


def test_lists_and_judges_are_asked_for_as_many_numbers_as_items():
    _, (_, user) = prompts.list_chat(" rivers ", ["é", '"', "\n"])
    described, tokens = user.split("\n")
    assert described.endswith(f"{prompts.OPENING} rivers")
    assert tokens.startswith("The 3 tokens: ") and json.loads(tokens.removeprefix("The 3 tokens: ")) == ["é", '"', "\n"]
    fragments = ["a\nb", "c «d»"]
    chats = [prompts.judge_chat("rivers", fragments, marks=marks) for marks in (False, True)]
    assert chats[0][0] != chats[1][0] and chats[0][1] == chats[1][1]
    assert [json.loads(line[3:]) for line in chats[0][1][1].split("\n")[2:]] == fragments
    assert "2 fragments" in chats[0][1][1] and "«" in chats[1][0][1] and "«" not in chats[0][0][1]


def test_marks_stand_around_runs():
    def mark(*which: bool) -> str:
        return prompts.marked(["a", "b", "c"], np.array(which, dtype=bool))

    assert mark(False, False, False) == "abc"
    assert mark(True, True, True) == "«abc»"
    assert mark(True, False, True) == "«a»b«c»"
    assert mark(False, True, False) == "a«b»c"


def test_characters_of_several_tokens_are_shown_whole():
    first, second, third = (alone(bytes([byte])) for byte in "京".encode())
    cut = fragment(("in ", 0.0), (first, 0.5), (second, 4.0), (third, 0.0), (".", 2.0))
    chat = prompts.explanation_chat([cut])
    assert chat[-1][1].startswith(shown("\n\nFeature 4\nActivations:", ["in \t0", "京\t10", ".\t5"]))
    _, fragment_line, pairs, _, _, quiet = prompts.examples_chat(examples([cut], [cut]))[1][1].split("\n")
    assert json.loads(fragment_line.removeprefix("1. ")) == "in «京.»"
    assert pairs.strip() == '("京", 10), (".", 5)'
    assert json.loads(quiet.removeprefix("1. ")) == "in 京."
    assert prompts.marked([first, second, third], np.array([False, False, True])) == "«京»"
