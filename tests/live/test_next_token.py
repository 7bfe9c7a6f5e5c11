"""The next token's distribution, before and after interventions."""

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.live_models import FIRST, SECOND, firing, live_model, random_prompt, silent

from monolex.causal import edits
from monolex.errors import UserError
from monolex.live.interventions import Intervention
from monolex.live.next_token import next_token
from monolex.model import hooks


@pytest.mark.parametrize("architecture", tiny.EDITED)
def test_it_is_that_of_forwards(architecture, tmp_path):
    live = live_model(tmp_path, tiny.model(architecture))
    prompt = random_prompt(live)
    feature = firing(live, prompt, SECOND, 5)[0]
    ids, edit = torch.tensor([prompt.ids]), edits.ablate(live.dictionary(SECOND).weights, [feature])
    p = hooks.logits(live.lm, ids)[0].softmax(-1)
    q = hooks.logits(live.lm, ids, {SECOND.split("/")[0]: edit})[0].softmax(-1)
    for position in (9, 5):
        answer = next_token(live, prompt, [Intervention(SECOND, feature)], position=position, top=5)
        a, b = p[position], q[position]
        assert [row.token for row in answer.before] == a.topk(5).indices.tolist()
        assert [row.token for row in answer.after] == b.topk(5).indices.tolist()
        assert [row.token for row in answer.changed] == (a - b).abs().topk(5).indices.tolist()
        for row in (*answer.before, *answer.after, *answer.changed):
            assert np.allclose([row.before, row.after], [float(a[row.token]), float(b[row.token])], rtol=1e-9)
            ranks = [(x.argsort(descending=True) == row.token).nonzero().item() + 1 for x in (a, b)]
            assert [row.rank_before, row.rank_after] == ranks and row.differs == (ranks[0] != ranks[1])
        assert np.isclose(answer.kl, float((a * (a.log() - b.log())).sum()), rtol=1e-7) and answer.kl > 0
        assert np.isclose(answer.kl_back, float((b * (b.log() - a.log())).sum()), rtol=1e-7)
        assert answer.position == position and answer.notes == ()
    assert next_token(live, prompt).before[0].token == int(p[9].argmax())


def test_what_changes_nothing_is_unchanged_to_the_last_bit(tmp_path):
    live = live_model(tmp_path, tiny.model("llama"))
    prompt = random_prompt(live)
    acting = firing(live, prompt, FIRST, 7)[0]
    for intervention, position, notes in (
        (Intervention(FIRST, silent(live, prompt, FIRST)), None, 1),
        (Intervention(FIRST, acting, where=7), 6, 0),
    ):
        answer = next_token(live, prompt, [intervention], position=position)
        assert answer.kl == answer.kl_back == 0 and len(answer.notes) == notes
        assert answer.before == answer.after and all(row.before == row.after for row in answer.changed)
    assert next_token(live, prompt, [Intervention(FIRST, acting, where=7)], position=7).kl > 0
    assert next_token(live, prompt).after == next_token(live, prompt).before


def test_what_is_wrong_is_a_sentence(tmp_path):
    live = live_model(tmp_path, tiny.model("llama"))
    prompt = random_prompt(live)
    for position in (-1, 10):
        with pytest.raises(UserError, match=f"position = {position}: the prompt has 10 tokens"):
            next_token(live, prompt, position=position)
    with pytest.raises(UserError, match="top = 0"):
        next_token(live, prompt, top=0)
    assert len(next_token(live, prompt, top=1000).before) == tiny.VOCAB
