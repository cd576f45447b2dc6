"""Equal prompts in one step, or in a validation: their samples differ, and all others stay what they were."""

from __future__ import annotations

import torch

from egrpo import distributed
from egrpo.data import PromptRecord
from egrpo.training.settings import RolloutSettings, earlier_occurrences, own_samples
from egrpo.training.validation import Validation

A, B = PromptRecord("a red circle"), PromptRecord("two blue squares")


def test_indices_count_on_where_a_prompt_comes_again():
    records = [A, B, A, A]
    earlier = earlier_occurrences([record.prompt for record in records])
    assert earlier == [0, 0, 1, 2]
    drawn, indices = own_samples(records, RolloutSettings(group_size=2), earlier)
    assert [record.prompt for record in drawn] == [A.prompt] * 2 + [B.prompt] * 2 + [A.prompt] * 4
    assert indices == [0, 1, 0, 1, 2, 3, 4, 5]
    assert own_samples([A, B], RolloutSettings(group_size=2), [0, 0])[1] == [0, 1, 0, 1]


def test_they_count_over_ranks(monkeypatch):
    parts = [["a", "b"], ["b", "a"], ["a", "c"]]
    monkeypatch.setattr(distributed, "gather", lambda value: parts)
    found = []
    for rank, part in enumerate(parts):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        found.append(earlier_occurrences(part))
    assert found == [[0, 0], [1, 1], [2, 0]]
    assert earlier_occurrences(["a", "a"], on_all_ranks=True) == [0, 1]


def test_samples_of_equal_prompts_in_one_step_differ(runs, tmp_path):
    module = runs.module(tmp_path)
    twice, alone = module.sample([A, B, A], 0), module.sample([A, B], 0)
    codes = twice.image.tokens
    assert len(torch.unique(codes, dim=0)) == 6
    assert torch.equal(codes[:4], alone.image.tokens)  # what does not repeat is drawn as ever


def test_equal_prompts_of_a_validation_differ_over_batches(runs, tmp_path):
    module = runs.module(tmp_path)
    validation: Validation = module.validation
    validation.judges = {}
    validation.start()
    validation.add(module.policy, [A, B])
    validation.add(module.policy, [A])
    first, _, again = validation.rows
    assert (first.image != again.image).any()
    validation.start()
    validation.add(module.policy, [A])
    assert (validation.rows[0].image == first.image).all()


def test_a_validation_leaves_images_without_a_reward_out_of_its_mean(runs, tmp_path):
    settings = "+reward.brightness.on_error=drop"
    module = runs.module(tmp_path, settings)
    module.rewards.rewards["brightness"].reward.broken_call = 1
    module.validation.judges = {}
    module.validation.start()
    module.validation.add(module.policy, [A, B])
    rows = module.validation.rows
    assert ["reward" in row.scores for row in rows] == [True, False]
    assert module.validation.means()["reward"] == rows[0].scores["reward"]


def test_images_go_to_the_first_rank_alone(monkeypatch, runs, tmp_path):
    module = runs.module(tmp_path)
    validation: Validation = module.validation
    validation.judges = {}
    validation.start()
    validation.add(module.policy, [A, B])
    rows, seen = validation.rows, []
    monkeypatch.setattr(distributed, "gather_first", lambda value: None)  # as on every other rank
    monkeypatch.setattr(distributed, "gather", lambda value: seen.append(value) or [value])
    validation.gather()
    assert [row.image.size for row in seen[0]] == [0, 0]
    assert [row.scores for row in validation.rows] == [row.scores for row in rows]
