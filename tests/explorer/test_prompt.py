"""The prompt page over HTTP: exact ids, features as the model gives them, edits, continuations, and many askers."""

import json
import threading
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import torch
from helpers.explored import NAME, SITES, Served, served
from helpers.page_parser import Page

from monolex.errors import UserError
from monolex.explorer.prompt_query import PromptQuery, named, parsed
from monolex.live.prompts import from_ids, from_text
from monolex.model.hooks import capture, logits

TITLE = f"{SITES[1]}/{NAME}"


@pytest.fixture(scope="module")
def key(server: Served) -> str:
    return next(d.key for d in server.explorer.runs["run"].dictionaries.values() if d.title == TITLE)


def page(server: Served, **said: Any) -> dict[str, Any]:
    answer = server.ask(f"/prompt.json?{urlencode(said)}")
    assert answer.status == 200, answer.text
    return answer.json


def events(server: Served, query: dict[str, str], **sampling: Any) -> list[dict[str, Any]]:
    answer = server.ask("/continue", body={"query": query, "max_new_tokens": 6, **sampling})
    assert answer.status == 200, answer.text
    return [json.loads(text.removeprefix("data: ")) for text in answer.text.split("\n\n") if text]


def test_a_text_becomes_exact_ids_and_these_replay_it(server):
    answer = server.ask(f"/prompt?text={quote('the cat sat')}")
    assert answer.status == 303 and answer.headers["location"].startswith("/prompt?ids=0.")
    shown = server.ask(answer.headers["location"])
    assert shown.status == 200
    Page(shown.text)
    ids = answer.headers["location"].partition("ids=")[2]
    live = server.explorer.live.of(server.explorer.runs["run"])
    assert [int(i) for i in ids.split(".")] == list(from_text(live, "the cat sat").ids)
    assert page(server, ids=ids)["exact"] == {"ids": ids, "generated": ""}


def test_features_are_those_of_the_model_and_the_dictionary(server, key):
    live = server.explorer.live.of(server.explorer.runs["run"])
    prompt = from_text(live, "the cat sat on a mat")
    said = page(server, ids=".".join(map(str, prompt.ids)), dictionaries=key, top=3, high=1)
    x = capture(live.lm, torch.tensor([prompt.ids]), [SITES[1]]).activations[SITES[1]][0]
    codes = server.explorer.runs["run"].record(key).weights().encode(x)
    for row, shown in zip(codes[1:], said["reading"]["features"][TITLE][1:], strict=True):
        best = row.topk(3)
        expected = [(i, v) for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True) if v > 0]
        assert [f["feature"] for f in shown["top"]] == [i for i, _ in expected]
        assert [f["value"] for f in shown["top"]] == pytest.approx([v for _, v in expected], rel=1e-4)
        assert all(f"{TITLE}:{f['feature']}" in said["known"] for f in shown["top"])
    assert not said["reading"]["features"][TITLE][0]["counts"]


def test_dense_features_are_left_out_by_the_slider(server, key):
    ids = ".".join(
        map(str, from_text(server.explorer.live.of(server.explorer.runs["run"]), "the cat sat on a mat").ids)
    )
    run = server.explorer.runs["run"]
    densities = {s.id: s.density for s in run.store(key).summaries()}
    shown = page(server, ids=ids, dictionaries=key, high=0.05, top=20)["reading"]["features"][TITLE]
    features = {f["feature"] for row in shown for f in row["top"]}
    everything = page(server, ids=ids, dictionaries=key, high=1, top=20)["reading"]["features"][TITLE]
    assert features == {f["feature"] for row in everything for f in row["top"] if densities[f["feature"]] <= 0.05}


@pytest.mark.parametrize("how", ["ablate", "clamp:3", "add:2", "scale:0.5", "swap:5"])
def test_edits_change_the_next_token_as_the_model_says(server, key, how):
    live = server.explorer.live.of(server.explorer.runs["run"])
    prompt = from_text(live, "the cat sat on a mat")
    ids = ".".join(map(str, prompt.ids))
    number = page(server, ids=ids, dictionaries=key, high=1, top=1)["reading"]["features"][TITLE][-1]["top"][0][
        "feature"
    ]
    said = page(server, ids=ids, dictionaries=key, edits=f"{key}/{number}:{how}")
    clean = logits(live.lm, torch.tensor([prompt.ids]))[0, -1].double().softmax(-1)
    top = said["next"]["before"][0]
    assert top["before"] == pytest.approx(float(clean.max()), rel=1e-4) and top["token"] == int(clean.argmax())
    assert said["next"]["kl"] > 0 and said["problem"] == ""


def test_what_cannot_be_done_is_a_sentence_on_the_page(server, key):
    ids = "0.40.41"
    for wrong in ("clamp:inf", "clamp:nan", "clamp", "clamp:1e39", "explode", "swap:3.5"):
        said = page(server, ids=ids, edits=f"{key}/3:{wrong}")
        assert said["problem"].count("\n") == 0 and said["problem"] and said["edits"][0]["feature"] == "3"
        assert said["next"] is None and said["reading"] is not None
        assert 'role="alert"' in server.ask(f"/prompt?{urlencode({'ids': ids, 'edits': f'{key}/3:{wrong}'})}").text
    assert "token id" in page(server, ids="0.999999")["problem"]
    assert "chat holds no messages" in page(server, chat="[]")["problem"]
    assert "chat is no JSON" in page(server, chat="[")["problem"]
    assert page(server, text="\ud800".encode("utf-8", "surrogatepass").decode("latin-1"))["problem"] == ""
    for wrong in ({"ids": "1.x"}, {"top": 99}, {"high": 0}, {"colour": 1}, {"generated": "3-1", "ids": ids}):
        answer = server.ask(f"/prompt.json?{urlencode(wrong)}")
        assert answer.status == 400 or answer.json["problem"]
    assert server.ask("/prompt.json?dictionaries=000000000000").status == 404


def test_a_chat_goes_through_the_template(server):
    answer = server.ask(f"/prompt?{urlencode({'chat': json.dumps([['user', 'the cat']])})}")
    said = page(server, ids=answer.headers["location"].partition("ids=")[2])
    text = "".join(said["prompt"]["texts"])
    assert "<|im_start|>" in text and "user" in text and any(said["prompt"]["special"])


def test_an_address_holds_what_differs_and_is_read_again():
    query = PromptQuery(ids="0.1.2", generated="1-3", special=False, top=2, edits="0123456789ab/3:ablate")
    assert parsed({name: str(value) for name, value in query.choice.items()}) == query
    assert PromptQuery().choice == {}


def test_generated_places_are_written_and_read(server):
    live = server.explorer.live.of(server.explorer.runs["run"])
    flags = (False, True, True, False, True)
    prompt = from_ids(live, (0, 40, 41, 42, 43), generated=flags)
    exact = named(prompt)
    assert exact == {"ids": "0.40.41.42.43", "generated": "1-3.4-5"}
    assert tuple(page(server, **exact)["prompt"]["generated"]) == flags


def test_a_continuation_is_streamed_and_a_second_turn_computes_new_tokens_only(server, key):
    ids = "0.40.41.42"
    first = events(server, {"ids": ids, "dictionaries": key})
    tokens = [event["token"] for event in first if "token" in event]
    end = first[-1]["end"]
    assert [t["position"] for t in tokens] == list(range(4, 4 + len(tokens))) and end["ids"].startswith(ids)
    assert all(TITLE in token["features"] for token in tokens)
    second = events(server, {"ids": end["ids"], "generated": end["generated"], "dictionaries": key})
    cost = second[-1]["end"]["cost"]
    assert cost["reused"] >= 3 + len(tokens) and cost["computed"] <= len(tokens) + 1


def test_both_continuations_come_and_where_they_part(server, key):
    ids = "0.40.41.42"
    number = page(server, ids=ids, dictionaries=key, high=1, top=1)["reading"]["features"][TITLE][-1]["top"][0][
        "feature"
    ]
    said = events(server, {"ids": ids, "edits": f"{key}/{number}:add:200"})
    sides = {
        side: [e["token"]["token"] for e in said if e.get("side") == side and "token" in e]
        for side in ("base", "edited")
    }
    apart = next(i for i, (a, b) in enumerate(zip(*sides.values(), strict=False)) if a != b)
    assert said[-1] == {"differ_at": 4 + apart}


def test_what_no_continuation_has_is_refused(server, key):
    for wrong in (
        {"query": {}},
        {"query": {"ids": "0.1"}, "max_new_tokens": 10_000},
        {"query": {"ids": "0.1"}, "temperature": "hot"},
        {"query": {"ids": "0.1"}, "temperature": -1},
        {"query": {"ids": "0.1", "edits": f"{key}/3:clamp:inf"}},
        {"query": {"ids": ["0"]}},
        {"query": "ids"},
        {"prompt": "x"},
    ):
        answer = server.ask("/continue", body=wrong)
        assert answer.status == 400 and answer.json["error"].count("\n") == 0


def test_a_grid_says_at_its_last_layer_what_the_model_says(server):
    live = server.explorer.live.of(server.explorer.runs["run"])
    ids = (0, 40, 41, 42)
    grid = server.ask("/grid.json?ids=0.40.41.42").json["grid"]
    best = logits(live.lm, torch.tensor([ids]))[0].argmax(-1).tolist()
    assert [says[0]["token"] for says in grid["layers"][-1]["says"]] == best
    answer = server.ask("/grid?ids=0.40.41.42")
    assert answer.status == 200
    Page(answer.text)
    assert server.ask("/grid").status == 400


def test_pages_go_on_while_the_model_works(server, key):
    wrong: list[str] = []
    done = threading.Event()

    def writes() -> None:
        while not done.is_set():
            wrong.extend(e["error"] for e in events(server, {"ids": "0.40.41"}, max_new_tokens=9) if "error" in e)

    def browses(number: int) -> None:
        for turn in range(8):
            address = (f"/feature/{key}/{number + turn}", f"/prompt?ids=0.{40 + number}.{41 + turn}", "/features")[
                turn % 3
            ]
            answer = server.ask(address)
            wrong.extend([answer.text] if answer.status != 200 else [])

    writer = threading.Thread(target=writes)
    readers = [threading.Thread(target=browses, args=(number,)) for number in range(10)]
    writer.start()
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    done.set()
    writer.join()
    assert wrong == []


def test_a_run_without_its_model_has_its_pages_all_the_same(explored):
    model = explored.parent / "model"
    with served(explored) as running:
        model.rename(explored.parent / "elsewhere")
        try:
            assert running.ask("/features").status == 200
            said = page(running, text="the cat")
            assert str(model) in said["problem"] and said["prompt"] is None
            assert running.ask("/prompt?text=cat").status == 200
            assert running.ask("/grid?ids=0.40").status == 400
        finally:
            (explored.parent / "elsewhere").rename(model)
        assert page(running, text="the cat")["problem"] == ""


def test_an_edit_of_a_shape_of_its_own_is_refused():
    with pytest.raises(UserError, match="edits holds 17"):
        PromptQuery(edits=",".join(["a"] * 17))


def test_features_are_found_by_a_prompt_as_by_the_verb(server):
    from monolex.features.answer import PromptHit
    from monolex.features.find import find
    from monolex.features.query import FindConfig

    run = server.explorer.runs["run"]
    said = server.ask(f"/find.json?{urlencode({'prompt': 'the cat sat', 'at': 'any'})}").json
    rows = find(run.folder, FindConfig(prompt="the cat sat", token="any", limit=10_000, where=("density<=0.1",))).rows
    expected = sorted((hit.of_max or 0.0 for hit in rows if isinstance(hit, PromptHit)), reverse=True)
    assert [hit["of_max"] for hit in said["hits"]] == pytest.approx(expected[: len(said["hits"])])
    assert {hit["feature"] for hit in said["hits"]} <= {hit.feature for hit in rows}
    answer = server.ask("/find?prompt=the+cat")
    assert answer.status == 200
    Page(answer.text)


def test_two_sets_of_texts_are_told_apart_beside_baselines(server):
    a = "\n".join(f"the cat sat {word} on a mat" for word in ["red", "two", "that", "and", "saw", "run", "to", "house"])
    b = "\n".join(f"dogs run to {word} house" for word in ["red", "two", "that", "and", "saw", "the", "a", "on"])
    said = server.ask(f"/find.json?{urlencode({'a': a, 'b': b})}").json
    assert said["hits"] and {each["what"] for each in said["beside"]} >= {"linear probe", "random direction"}
    strengths = [abs(hit["chosen_auroc"] - 0.5) for hit in said["hits"]]
    assert any("more texts would decide" in note for note in said["notes"]) == (
        min(h["q"] for h in said["hits"]) >= 0.05
    )
    assert strengths == sorted(strengths, reverse=True) and all(hit["auroc"]["low"] is not None for hit in said["hits"])
    answer = server.ask(f"/find?{urlencode({'a': a, 'b': b})}")
    assert answer.status == 200
    Page(answer.text)
    assert server.ask("/find.json?a=x&b=y").status == 400
    assert server.ask("/find.json?at=first").status == 400 and server.ask("/find").status == 200
