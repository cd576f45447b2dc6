"""What Hydra says of a command line is said with the nearest name, or with the form in which it can be read."""

from __future__ import annotations

import shlex
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate

from egrpo import entry
from egrpo.base.errors import UserError
from egrpo.settings import check_words, explained, explained_part
from tests.conf.helpers import CONF, composed


def said(*overrides: str) -> str:
    with pytest.raises(HydraException) as caught:
        composed("train", *overrides)
    return str(explained(caught.value, "train"))


@pytest.mark.parametrize(
    "override, sentence",
    [
        ("objective.bta=1", "objective.bta: there is no such setting; did you mean objective.beta?"),
        (
            "optimizer.weigth_decay=1",
            "optimizer.weigth_decay: there is no such setting; did you mean optimizer.weight_decay?",
        ),
        ("optimzer=adamw", "optimzer: there is no such setting; did you mean optimizer?"),
        ("trainer.max_step=1", "trainer.max_step: there is no such setting; did you mean trainer.max_steps?"),
        (
            "trainer.fast_dev_runs=1",
            "trainer.fast_dev_runs: there is no such setting; did you mean trainer.fast_dev_run?",
        ),
        ("~modl", "modl: there is no such setting; did you mean model?"),
        ("~reward.orm", "reward.orm: this run has no such entry in reward, so there is nothing to leave out"),
        (
            "reward.shapes_strct.weight=1",
            "reward.shapes_strct.weight: there is no such entry in reward; did you mean reward.shapes_strict? "
            "A new one is added with a plus: +reward.shapes_strct.weight=...",
        ),
        ("OBJECTIVE.BETA=1", "OBJECTIVE.BETA: there is no such setting; did you mean objective?"),
        ("objective.beta.x=1", "objective.beta.x: there is no such setting; did you mean objective.beta?"),
        ("logger=wandbb", "logger=wandbb: there is no such choice; did you mean wandb?"),
        ("reward=[shape_oracle]", "reward=shape_oracle: there is no such choice; did you mean shapes_oracle?"),
        (
            "strategy=zzz",
            "strategy=zzz: there is no such choice; choose from auto, ddp, deepspeed_stage_2, "
            "deepspeed_stage_3, deepspeed_stage_3_offload, fsdp2",
        ),
        ("logger.wandb.nme=x", "logger.wandb.nme: there is no such setting; did you mean logger.wandb.name?"),
    ],
)
def test_a_key_that_is_not_there_is_answered_with_the_nearest(override, sentence):
    assert said(override) == sentence


@pytest.mark.parametrize(
    "value", ["a=b", "a#b", "~/runs", "${x", "{x", "a, b", "it's, so", "(x", 'say "x', "b;c", "a\\ \"b'=c"]
)
def test_a_text_that_hydra_cannot_read_is_shown_as_it_can(value):
    last = said(f"study.name={value}").splitlines()[-1]
    assert last.startswith("as one text it is written ")
    form = last.removeprefix("as one text it is written ").partition(": quotes for the shell")[0]
    (word,) = shlex.split(form)
    assert composed("train", word).study.name == value
    assert not OverridesParser.create().parse_override(word).is_sweep_override()


@pytest.mark.parametrize("word", ["hydra.run.dir=", "hydra.run.dir=''", 'hydra.sweep.dir=""', "+hydra.run.dir= "])
def test_an_empty_folder_is_refused_before_hydra_writes_into_the_current_one(word, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"hydra\.(run|sweep)\.dir= is empty"):
        check_words(["seed=1", word])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["egrpo.train", word])
    with pytest.raises(SystemExit) as end:
        entry.run(lambda cfg: pytest.fail("ran"), "train")
    assert end.value.code == 1 and list(tmp_path.iterdir()) == []
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "word, sentence",
    [
        ("=1", "=1: there is no key before the equals sign"),
        ("cot=true", "cot=true: true is none of its choices; choose from off, on"),
        ("+experiment=3", "+experiment=3: 3 is none of its choices; choose from "),
        ("reward={hps: 1}", "none of its choices; "),
    ],
)
def test_a_word_that_hydra_would_misunderstand_is_refused(word, sentence):
    with pytest.raises(UserError) as caught:
        check_words(["seed=1", word])
    assert sentence in str(caught.value)


def test_words_that_hydra_understands_pass():
    check_words(["cot=on", "cot=on,off", "reward=[hps,git]", "logger=null", "~reward.hps", "judge=none", "a=b=c"])
    check_words(["judge=3"], "collect")  # a key there, not a group


@pytest.mark.parametrize(
    "node, sentence",
    [
        ({"_target_": "torch.optim.Adamm"}, "optimizer._target_=torch.optim.Adamm cannot be imported: Are you sure"),
        (
            {"_target_": "egrpo.training.callbacks.Kept", "mode": "maximum", "monitor": "val/reward"},
            "optimizer: `mode` can be min, max but got maximum; set it right with optimizer.NAME=VALUE",
        ),
    ],
)
def test_a_part_that_cannot_be_built_is_named_by_its_key(node, sentence):
    with pytest.raises(InstantiationException) as caught:
        instantiate({"optimizer": node})
    said = explained_part(caught.value)
    assert isinstance(said, UserError) and str(said).startswith(sentence)


def test_settings_are_checked_before_a_command_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["egrpo.train", f"hydra.run.dir={tmp_path}", "+objective.bta=0.5", "seed=null"])
    with pytest.raises(SystemExit) as end:
        entry.run(lambda cfg: pytest.fail("ran"), "train")
    told = capsys.readouterr().err
    assert end.value.code == 1
    assert "objective.bta: there is no such setting; did you mean beta?" in told
    assert "seed=null: give a whole number from 0 to 4294967295" in told


def test_other_errors_stay_as_they_are():
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(HydraException) as caught:
        compose("train", ["+model=shapes"])
    assert explained(caught.value, "train") is caught.value
