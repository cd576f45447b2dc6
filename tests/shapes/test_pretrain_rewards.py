"""`python -m egrpo.shapes.pretrain_rewards` leaves what the rewards load; its parts do what the trainings build on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from egrpo.rewards.git import GITReward
from egrpo.rewards.hps import HPSReward
from egrpo.shapes import atlas, oracle
from egrpo.shapes.oracle import spec_of
from egrpo.shapes.plans import random_scene
from egrpo.shapes.pretrain_rewards import clip, examples, git
from egrpo.shapes.pretrain_rewards.__main__ import pretrain_rewards
from egrpo.shapes.pretrain_rewards.clip_targets import cell_targets
from egrpo.shapes.pretrain_rewards.jobs import make_network
from egrpo.shapes.pretrain_rewards.phrases import KINDS, Question, ask
from egrpo.shapes.pretrain_rewards.words import bert_tokenizer, clip_tokenizer
from egrpo.shapes.prompts import split_of
from egrpo.shapes.scene import judge

ROOT = Path(__file__).parents[2]
FEW = [f"networks.{name}.{key}" for name in ("hps", "git") for key in ("steps=2", "decoded=8", "malformed=8")]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def run_command(*overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "egrpo.shapes.pretrain_rewards", "only=[hps,git]", "held_out=2", *FEW, *overrides]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.slow
def test_command_leaves_directories_that_the_rewards_load(tmp_path):
    target, folder = f"target={tmp_path / 'rewards'}", f"hydra.run.dir={tmp_path}"
    ran = run_command(target, folder)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1] == str(tmp_path / "rewards")
    verdict = json.loads((tmp_path / "rewards" / "verdict.json").read_text())
    assert list(verdict) == ["hps", "git"]
    assert all(np.isfinite(list(numbers.values())).all() for numbers in verdict.values())

    record, scene = examples.draw_example(np.random.default_rng(0), "color")
    image = Image.fromarray(atlas.paint(atlas.encode(scene, np.random.default_rng(0))))
    assert -1 <= HPSReward(tmp_path / "rewards" / "hps")([image], [record]).item() <= 1
    assert 0 <= GITReward(tmp_path / "rewards" / "git")([image], [record]).item() <= 1


@pytest.mark.parametrize("name", ["hps", "git"])
def test_finished_network_is_kept_and_another_recipe_is_trained_anew(name, tmp_path):
    recipe: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "pretrain_rewards.yaml").networks[name])
    recipe |= {"steps": 1, "decoded": 4, "malformed": 4, "prompts" if name == "hps" else "pictures": 8}
    target = tmp_path / "rewards"
    verdict = make_network(name, recipe, 0, 2, target)
    weights = target / name / "model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    assert make_network(name, recipe, 0, 2, target) == verdict  # its seconds too: nothing was trained
    assert weights.read_bytes() == before
    again = make_network(name, recipe, 0, 3, target)
    assert weights.read_bytes() == before and again["seconds"] != verdict["seconds"]  # trained again, to the same
    make_network(name, recipe | {"adamw_lr": 1e-3}, 0, 2, target)
    assert weights.read_bytes() != before


def test_command_tells_an_unknown_network(tmp_path):
    cfg = OmegaConf.create({"only": ["clip"], "networks": {"hps": {}}, "target": str(tmp_path)})
    with pytest.raises(ValueError, match=r"only=\['clip'\] names no network of \['hps'\]"):
        pretrain_rewards(cfg)


def test_examples_are_open_and_wrong_scenes_are_wrong():
    rng = np.random.default_rng(0)
    for _ in range(50):
        record, scene = examples.draw_example(rng)
        assert split_of(record) == "open"
        assert judge(scene, spec_of(record)) == 1
        assert judge(examples.wrong_scene(scene, spec_of(record), rng), spec_of(record)) < 1
    assert all(r.extra["split"].startswith("unseen") for r in examples.held_out_records(640))
    with pytest.raises(ValueError, match="641 held-out prompts"):
        examples.held_out_records(641)


def test_painted_pictures_show_their_scene_in_both_looks():
    rng = np.random.default_rng(3)
    painter = examples.Painter(0, pool=40)
    scenes = [random_scene(rng) for _ in range(12)]
    codes = np.stack([atlas.encode(scene, rng) for scene in scenes])
    pictures = painter.paint(codes, rng)
    exact = (pictures == atlas.paint(codes)).all((1, 2, 3))
    assert 0 < exact.sum() < len(scenes)
    for picture, scene in zip(pictures, scenes, strict=True):
        seen = {(t.shape, t.color, t.texture, int(t.x), int(t.y)) for t in oracle.detect(picture)}
        assert seen == {(t.shape, t.color, t.texture, int(t.x), int(t.y)) for t in scene}


def test_questions_are_answered_as_wanted_and_no_is_one_attribute_off():
    rng = np.random.default_rng(0)
    things = [atlas.place("circle", "red", "plain", 0), atlas.place("square", "blue", "striped", 4)]
    assert ask(things, rng, (), True) == Question("figure?", True)
    assert ask([], rng, (), True) == Question("figure?", False)
    yes = {ask(things, rng, ("figure",), True).text for _ in range(20)}
    assert yes == {"round figure?", "square figure?"}
    for kind in KINDS[:-1]:
        for wanted in (True, False):
            assert ask(things, rng, kind, wanted).answer is wanted
    no = {ask(things, rng, ("color", "shape"), False).text for _ in range(200)}
    assert "blue circle?" in no and "red square?" in no and "red circle?" not in no
    assert all(ask([], rng, kind, True).answer is False for kind in KINDS)


def test_preference_loss_is_bradley_terry_over_pairs_that_differ():
    logits, scores = torch.tensor([[2.0, 0.5, 1.0]]), torch.tensor([[1.0, 0.5, 0.5]])
    expected = (np.log1p(np.exp(-1.5)) + np.log1p(np.exp(-1.0))) / 2
    assert clip.preference_loss(logits, scores).item() == pytest.approx(expected, rel=1e-6)
    assert clip.preference_loss(logits, torch.ones(1, 3)).item() == 0


def test_groups_hold_right_wrong_scattered_and_malformed_pictures():
    records, scenes, pictures, formed = clip.Groups(0, decoded=4, malformed=6).draw(16)
    assert pictures.shape == (16 * clip.KINDS, 48, 48, 3)
    rows = [scenes[i : i + clip.KINDS] for i in range(0, len(scenes), clip.KINDS)]
    for record, row in zip(records, rows, strict=True):
        scores = [judge(scene, spec_of(record)) for scene in row]
        assert scores[:2] == [1, 1] and max(scores[2:5]) < 1
        assert split_of(record) == "open"
    assert np.flatnonzero(~formed).tolist() == [5, 11, 17, 23]
    for i in np.flatnonzero(~formed):
        assert oracle.detect(pictures[i]) == scenes[i]
    # The last picture of a prompt with a relation shows the same things elsewhere, of any other prompt a mistake.
    for record, row in zip(records[4:], rows[4:], strict=True):
        if spec_of(record).locality:
            assert sorted((t.shape, t.color, t.texture) for t in row[5]) == sorted(
                (t.shape, t.color, t.texture) for t in row[0]
            )
        else:
            assert judge(row[5], spec_of(record)) < 1


def test_cells_name_what_stands_there():
    targets = cell_targets([[atlas.place("triangle", "yellow", "striped", 5)]])
    assert targets[0, 5].tolist() == [3, 4, 2]
    assert targets.sum() == 9


def test_packed_texts_are_scored_as_each_alone():
    torch.manual_seed(0)
    tokenizer = bert_tokenizer()
    model = git.build(tokenizer, vision={**SMALL, "patch_size": 16}, text={**SMALL, "max_position_embeddings": 32})
    model.eval()
    pixels = torch.randn(2, 3, 48, 48)
    questions = [[Question("red circle?", True), Question("cross?", False)], [Question("figure?", True)] * 2]
    texts = git.Texts(tokenizer, ["top a red circle", None], questions)
    with torch.no_grad():
        _, hidden = git.forward(model, pixels, texts)
        for row, asked in enumerate(questions):
            places = (texts.answers[row] != git.IGNORE).nonzero().flatten()
            for place, question in zip(places, asked, strict=True):
                ids = [tokenizer.cls_token_id, *tokenizer(question.text, add_special_tokens=False).input_ids]
                alone = model(input_ids=torch.tensor([ids]), pixel_values=pixels[row : row + 1]).logits[0, -1]
                torch.testing.assert_close(model.output(hidden[row, place]), alone, rtol=1e-4, atol=1e-5)
    told = texts.captions[0][texts.captions[0] != git.IGNORE]
    assert tokenizer.decode(told.tolist()) == "top a red circle [SEP]"
    assert (texts.captions[1] == git.IGNORE).all()


def test_tokenizers_have_the_layouts_that_the_rewards_read():
    text = clip_tokenizer()
    ids = text("two striped red circles").input_ids
    assert len(ids) == 6 and ids[0] == len(text) - 2 and ids[-1] == len(text) - 1
    assert len(text("Ωmega zebra").input_ids) > 4
    words = bert_tokenizer()
    assert words.tokenize("Round figure?") == ["round", "figure", "?"]
    assert "[UNK]" not in words.tokenize("zebra")
