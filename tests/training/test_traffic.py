"""What a rank sends, by arithmetic: by hand for some shapes, and nothing where there is nobody to tell."""

import pytest
from helpers.planted import SITE, config

from monolex.errors import UserError
from monolex.kinds import KINDS
from monolex.training.members import members
from monolex.training.traffic import largest_share, step_traffic


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_sends_nothing(kind):
    made = config(kinds=(kind,))
    (member,) = members(made, {SITE: 8})
    assert step_traffic(made, member, made.batch_size) == 0


def test_features_cost_a_sum_of_what_is_decoded_and_the_candidates():
    made = config(kinds=("topk",), ks=(3,), ratios=(8.0,), batch_size=64, feature_ranks=4)
    share = largest_share(made, members(made, {SITE: 16}), 4)
    assert (share.batch, share.members[0].d_sae) == (64, 32)
    ring, candidates = 2 * 3 / 4 * (64 * 16 + 16) * 4, 3 * 64 * 3 * 4
    assert step_traffic(made, share.members[0], share.batch) == ring + candidates


def test_rows_cost_what_was_decoded_and_the_codes_and_a_batch_its_histograms():
    made = config(kinds=("topk", "batchtopk"), ks=(3,), ratios=(8.0,), batch_size=64, data_ranks=2)
    topk, batchtopk = members(made, {SITE: 16})
    told = 32 * 17 * 4 + 8 * 32 + 32 * 3 * 12
    assert step_traffic(made, topk, 32) == told
    assert step_traffic(made, batchtopk, 32) == told + 2 * (2 * 1 / 2 * 2**16 * 4)


def test_a_refined_step_tells_its_first_codes_too():
    made = config(kinds=("batchtopk", "lista"), ks=(3,), ratios=(8.0,), batch_size=64, data_ranks=2)
    batchtopk, lista = members(made, {SITE: 16})
    first = 32 * 16 * 4 + 8 * 32 + 32 * 3 * 8
    assert step_traffic(made, lista, 32) == step_traffic(made, batchtopk, 32) + first
    shared = config(kinds=("batchtopk", "lista"), ks=(3,), ratios=(8.0,), batch_size=64, feature_ranks=4)
    batchtopk, lista = largest_share(shared, members(shared, {SITE: 16}), 4).members
    candidates, twice_decoded = 3 * 64 * 3 * 4, 2 * (2 * 3 / 4 * 64 * 16 * 4)
    assert step_traffic(shared, lista, 64) == step_traffic(shared, batchtopk, 64) + candidates + twice_decoded


def test_a_rank_has_the_members_of_its_group():
    made = config(kinds=("topk",), ratios=(1.0, 2.0, 4.0, 8.0))
    sizes = [member.d_sae for member in largest_share(made, members(made, {SITE: 16}), 2).members]
    assert sizes == [128], "the largest alone outweighs the others"
    with pytest.raises(UserError, match="ranks = 3 is no multiple of data_ranks = 2 times feature_ranks = 1"):
        largest_share(config(data_ranks=2), members(made, {SITE: 16}), 3)
