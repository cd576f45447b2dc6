"""Three lines to an image, from a model, a run, a checkpoint or an export; the same images as the command's."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from egrpo import Generator
from egrpo.export import export
from egrpo.generation import chosen
from egrpo.policies import model_hash
from tests.generation.conftest import PROMPTS


@pytest.fixture(scope="module")
def trained(runs, tmp_path_factory) -> Path:
    """A run of one step without plans, guided, by a learning rate that changes what is drawn."""
    folder = tmp_path_factory.mktemp("trained")
    settings = ("trainer.max_steps=1", "trainer.limit_val_batches=0", "callbacks.best=null", "optimizer.lr=0.05")
    runs.run(folder, *settings, "cot=off", "rollout.cfg_weight=1.5")
    return folder


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator("shapes", batch_size=5, overrides=["model.max_plan_tokens=6"])


def test_pictures_are_those_of_the_command(generator, whole):
    pictures = generator.generate(PROMPTS, 3)
    rows = [json.loads(line) for line in whole["generations.jsonl"].splitlines()]
    for picture, row in zip(pictures, rows, strict=True):
        told = (picture.prompt, picture.plan, picture.index, picture.seed, picture.truncated)
        assert told == tuple(row[name] for name in ("prompt", "plan", "index", "seed", "truncated"))
        drawn = Image.open(io.BytesIO(whole[row["file"]]))
        assert np.array_equal(np.asarray(picture.image), np.asarray(drawn))


def test_a_picture_saves_what_it_is(tmp_path):
    (picture,) = Generator(overrides=["model.max_plan_tokens=6"]).generate(
        "a red circle", num_images=1, seed=3, cot=False
    )
    picture.save(tmp_path / "new" / "image.png")
    with Image.open(tmp_path / "new" / "image.png") as image:
        assert image.info["prompt"] == "a red circle" and image.info["plan"] == "" and image.info["seed"] == "3"
    assert picture._repr_png_() == (tmp_path / "new" / "image.png").read_bytes()


def test_a_run_its_checkpoint_and_its_export_draw_as_it_was_trained(trained, tmp_path, command):
    export(OmegaConf.create({"run": str(trained), "checkpoint": "last", "target": str(tmp_path / "export")}))
    places = [trained, trained / "checkpoints" / "last.ckpt", tmp_path / "export"]
    drawn = [Generator(place).generate("a red circle", 2) for place in places]
    assert all(picture.plan == "" for pictures in drawn for picture in pictures)
    files = command(tmp_path / "out", ["a red circle"], "num_images=2", f"ckpt_path={trained}")
    settings = json.loads(files["manifest.json"])["settings"]
    assert settings["cot"] is False and settings["cfg_weight"] == 1.5
    assert settings["model_hash"] == model_hash(Generator(places[2]).policy)
    for pictures in drawn:
        for picture in pictures:
            own = files[f"images/a-red-circle-a1e4a280d27cad5b_{picture.index:04d}.png"]
            assert np.array_equal(np.asarray(picture.image), np.asarray(Image.open(io.BytesIO(own))))
    untouched = Generator().generate("a red circle", 2, cot=False, cfg_weight=1.5)
    assert any(not np.array_equal(a.image, b.image) for a, b in zip(untouched, drawn[0], strict=True))


def test_no_pixel_depends_on_how_many_are_decoded(generator, monkeypatch):
    """A CPU's convolutions round otherwise for another number of images."""
    generator.generate("a red circle", 1)  # decodes evenly from now on
    policy, sizes = generator.policy, []
    codes = torch.randint(
        0, policy.model.config.vq_config.num_embeddings, (24, 36), generator=torch.Generator().manual_seed(0)
    )
    together = policy.decode(codes)
    decode = policy.model.decode_image_tokens
    monkeypatch.setattr(policy.model, "decode_image_tokens", lambda part: sizes.append(len(part)) or decode(part))
    assert torch.equal(torch.cat([policy.decode(part) for part in codes.split(5)]), together)
    assert len(sizes) == 9 and len(set(sizes)) == 1


def test_settings_are_the_given_the_trained_or_the_models(policy, monkeypatch):
    assert chosen(policy, 1, {}).cfg_weight == 1
    monkeypatch.setattr(policy.model.generation_config, "guidance_scale", 5, raising=False)
    assert chosen(policy, 1, {"cfg_weight": None}).cfg_weight == 5
    assert chosen(policy, 1, {}, {"cfg_weight": 2.0, "cot": False}).cfg_weight == 2
    assert chosen(policy, 1, {"cfg_weight": 3}, {"cfg_weight": 2.0, "cot": False}) == chosen(
        policy, 1, {"cfg_weight": 3.0, "cot": False}
    )


@pytest.mark.parametrize(
    "how, told",
    [
        ({"seed": "a"}, "seed=a: give a whole number"),
        ({"cot": "on"}, "cot=on: give on or off"),
        ({"temperature": "warm"}, "temperature=warm: give a number"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"top_p": 2}, "top_p=2"),
        ({"top_k": 1.5}, "top_k=1.5: give a whole number"),
        ({"cfg_weight": float("nan")}, "cfg_weight=nan: give a number"),
        ({"num_images": 0}, "num_images=0"),
    ],
)
def test_settings_that_make_no_sense_are_told(generator, how, told: str):
    with pytest.raises(ValueError, match=told):
        generator.generate("a red circle", **how)


@pytest.mark.parametrize("template", ["shapes", "visualize", "world_knowledge"])
def test_templates_are_chosen(template: str):
    generator = Generator(overrides=[f"model/templates={template}", "model.max_plan_tokens=6"])
    assert ("first work out" in generator.policy.templates.reasoning.lower()) == (template == "world_knowledge")
    assert len(generator.generate("a red circle", 1)) == 1


def test_a_model_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Janus checkpoint at"):
        Generator(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="this folder is not a checkpoint"):
        Generator(tmp_path)


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, egrpo; sys.exit(any(name in sys.modules for name in ('torch', 'hydra', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
