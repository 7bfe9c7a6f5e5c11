"""The logit lens of every layer and token, and the strongest feature there."""

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.live_models import BOTH, FIRST, SECOND, dictionaries, firing, live_model, random_prompt, silent

from monolex.errors import UserError
from monolex.live import lens as module
from monolex.live.interventions import Intervention
from monolex.live.lens import lens
from monolex.live.reading import Wanted, read
from monolex.model import hooks


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_last_layer_says_what_the_model_says(architecture, tmp_path, monkeypatch):
    live = live_model(tmp_path, tiny.model(architecture))
    prompt = random_prompt(live)
    monkeypatch.setattr(module, "LOGITS", 3 * tiny.VOCAB)  # three tokens at a time
    grid = lens(live, prompt, top=3)
    assert [row.layer for row in grid.layers] == [0, 1, 2] and grid.cost == (10, 0) and grid.notes == ()
    p = hooks.logits(live.lm, torch.tensor([prompt.ids]))[0].softmax(-1)
    best = p.topk(3)
    for at, cell in enumerate(grid.layers[-1].says):
        assert [said.token for said in cell] == best.indices[at].tolist()
        assert np.allclose([said.probability for said in cell], best.values[at].tolist(), rtol=1e-9)


def test_a_layer_is_the_final_norm_and_the_unembedding(tmp_path):
    live = live_model(tmp_path, tiny.model("llama"))
    prompt = random_prompt(live)
    grid = lens(live, prompt)
    for row in grid.layers:
        x = tiny.read(live.lm, f"resid_post.{row.layer}", torch.tensor([prompt.ids]))[0]
        p = (live.lm.final_norm(x) @ live.lm.unembedding.T).softmax(-1)
        assert [cell[0].token for cell in row.says] == p.argmax(-1).tolist()
        assert np.allclose([cell[0].probability for cell in row.says], p.max(-1).values.tolist(), rtol=1e-9)
        assert [cell[0].text for cell in row.says] == [str(cell[0].token) for cell in row.says]


def test_cells_hold_the_strongest_feature(tmp_path):
    live = live_model(tmp_path, tiny.model("llama"))
    prompt = random_prompt(live)
    grid = lens(live, prompt)
    assert [row.dictionary for row in grid.layers] == [FIRST, SECOND, None]
    expected = read(live, prompt, BOTH).features
    for row in grid.layers[:2]:
        tops = [token.top[0] if token.top else None for token in expected[row.dictionary or ""]]
        assert [cell and cell.feature for cell in row.strongest] == [cell and cell.feature for cell in tops]
    assert grid.layers[2].strongest == (None,) * 10
    single = lens(live, prompt, Wanted((SECOND,), kept={SECOND: np.zeros(40, dtype=bool)}), layers=[1, 0, 1])
    assert [(row.layer, row.dictionary) for row in single.layers] == [(0, None), (1, SECOND)]
    assert single.layers[1].strongest == (None,) * 10


def test_interventions(tmp_path):
    live = live_model(tmp_path, tiny.model("llama"))
    prompt = random_prompt(live)
    base, edited = (
        lens(live, prompt, interventions=edits)
        for edits in ((), [Intervention(SECOND, firing(live, prompt, SECOND, 5)[0])])
    )
    assert base.layers[0] == edited.layers[0] and base.layers[1].says != edited.layers[1].says
    assert (
        lens(live, prompt, interventions=[Intervention(FIRST, silent(live, prompt, FIRST))])
        .notes[0]
        .endswith("on none of these tokens, so nothing changes")
    )


def test_what_is_wrong_is_a_sentence(tmp_path):
    several = dictionaries()
    live = live_model(
        tmp_path,
        tiny.model("llama"),
        {**several, "resid_post.0/other": several[FIRST], "mlp_out.1/other": several[SECOND]},
    )
    prompt = random_prompt(live)
    assert [row.dictionary for row in lens(live, prompt).layers] == [FIRST, SECOND, None]
    for sentence, wanted in {
        "dictionary 'mlp_out.1/other': the grid shows residual streams": ("mlp_out.1/other",),
        "dictionary 'resid_post.0/other': give a single dictionary of resid_post.0": (FIRST, "resid_post.0/other"),
        "dictionary 'x': there is none": ("x",),
    }.items():
        with pytest.raises(UserError, match=sentence):
            lens(live, prompt, Wanted(wanted))
    with pytest.raises(UserError, match="layers hold \\[3\\]: tiny-llama has layers 0 to 2"):
        lens(live, prompt, layers=[0, 3])
    with pytest.raises(UserError, match="top = 0"):
        lens(live, prompt, top=0)
