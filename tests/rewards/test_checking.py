"""Before a run: rewards say what they cannot judge; a prompt file alone refuses nothing of that."""

from __future__ import annotations

import logging

import pytest
import torch

from egrpo.base.errors import UserError
from egrpo.paths import resolve
from egrpo.rewards import GITReward, GroundingDinoReward, PythonReward, RewardEnsemble, WeightedReward
from egrpo.rewards.checking import check_prompts
from egrpo.rewards.detection_rules import unjudged
from egrpo.shapes.reward import OracleReward
from egrpo.types import PromptRecord

ASSETS = "package:egrpo/shapes/assets/rewards"
LEFT = {"obj1": "cat", "obj2": "dog", "locality": "left of"}


def spatial(**changes) -> PromptRecord:
    info = {**LEFT, **{name: value for name, value in changes.items() if name != "nouns"}}
    return PromptRecord("p", changes.get("nouns", ["cat", "dog"]), spatial_info=info, task_type="spatial")


def counted(*names: str) -> PromptRecord:
    counts = [{"obj_name": name, "num": 1} for name in names]
    return PromptRecord("p", ["cat"], numeracy_info=counts, task_type="numeracy")


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (spatial(nouns=["dog"]), '\'cat\' as "obj1" of "spatial_info", which is not among its "nouns": add it there'),
        (spatial(nouns=["cat", "dogs"]), '\'dog\' as "obj2" of "spatial_info"'),
        (spatial(locality="Left-of"), 'no rule: did you mean "left of"? valid are on the right of, right of'),
        (spatial(locality="inside"), "the locality 'inside'"),
        (counted("cow"), '\'cow\' as "obj_name" in entry 1 of "numeracy_info"'),
        (counted("cat", "süße cat"), "'süße cat' as \"obj_name\" in entry 2"),
    ],
)
def test_what_the_rules_cannot_judge_is_told(record, text):
    (told,) = unjudged(record)
    assert "the prompt 'p'" in told and text in told


def test_what_the_rules_can_judge_is_not():
    assert unjudged(spatial()) == unjudged(counted("cat")) == unjudged(PromptRecord("beauty")) == []


@pytest.fixture(scope="module")
def detector() -> GroundingDinoReward:
    return GroundingDinoReward(resolve(f"{ASSETS}/gdino"))


def test_a_detector_tells_too_many_nouns_and_nouns_without_tokens(detector):
    crowd, accent = PromptRecord("a crowd", ["dog"] * 200), PromptRecord("an accent", ["dog", "\u0301"])
    told = detector.check([PromptRecord("a dog", ["dog"]), crowd, accent, spatial(locality="inside")])
    assert len(told) == 3 and "prompt 'a crowd' make" in told[0] and "of the prompt 'an accent'" in told[1]
    with pytest.raises(UserError, match="has no characters that the detector reads"):
        detector.caption(accent)


def test_git_and_the_oracle_tell_what_they_cannot_ask():
    git = GITReward(resolve(f"{ASSETS}/git"))
    assert git.check([PromptRecord("a", ["dog"]), PromptRecord("b", ["\0\u202e"]), spatial(nouns=["\u0301"])]) == [
        "the noun '\\x00\\u202e' of the prompt 'b' has no characters that GIT reads: write it in other letters, or "
        "leave it out"
    ]
    (told,) = OracleReward().check([PromptRecord("a dog")])
    assert "'a dog'" in told and "scene" in told


def picky(images, records):
    return torch.zeros(len(images))


picky.check = lambda records: [f"{r.prompt}: no nouns" for r in records if not r.nouns]


def test_a_run_is_refused_before_it_begins_unless_the_reward_may_be_dropped(caplog):
    reward = PythonReward(f"{__file__}:picky")
    good, bad, other = PromptRecord("good", ["x"]), PromptRecord("bad"), PromptRecord("other")
    stop, drop = (RewardEnsemble({"mine": WeightedReward(reward, 1.0, how)}) for how in ("stop", "drop"))
    check_prompts(stop, {}, [good], [good])
    with pytest.raises(UserError, match=r"cannot be judged.*\n  mine: bad: no nouns\n  mine: other: no nouns$"):
        check_prompts(stop, {}, [good, bad], [bad, other])
    with caplog.at_level(logging.WARNING):
        check_prompts(drop, {}, [bad], [])
    assert "mine: bad: no nouns" in caplog.text
    with pytest.raises(UserError, match="judge: other"):
        check_prompts(drop, {"judge": reward}, [bad], [other])
