"""Both trainings learn within a few steps, and `python -m egrpo.shapes.pretrain` leaves what a policy loads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from egrpo.data import read_prompts
from egrpo.policy import JanusPolicy
from egrpo.shapes import atlas
from egrpo.shapes.plans import random_scene
from egrpo.shapes.pretrain.codec import draw_codes, measure_codec, to_pixels, to_uint8, train_codec
from egrpo.shapes.pretrain.jobs import make_codec, make_language
from egrpo.shapes.pretrain.language import ExampleMaker, losses, train_language, trained_parameters
from tests.shapes.conftest import SMALL_TEXT, SMALL_VQ

FEW_STEPS = {"draw": {"steps": 4, "batch_size": 8}, "plan": {"steps": 2, "batch_size": 8}, "blur": {"steps": 2}}


def codec_error(vqmodel: Any) -> tuple[float, float]:
    """(mean squared pixel error of painted codes, share of patches named) on fixed fresh scenes."""
    codes = draw_codes(8, np.random.default_rng(99))
    pixels = to_pixels(codes)
    with torch.no_grad():
        named = vqmodel.encode(pixels).image_tokens.view(codes.shape) == codes
        return (vqmodel.decode(codes) - pixels).square().mean().item(), named.float().mean().item()


def test_codec_learns(small_model):
    vqmodel = small_model.model.vqmodel.eval()
    fixed = vqmodel.quantize.embedding.weight.clone()
    error, named = codec_error(vqmodel)
    train_codec(vqmodel, steps=40, batch_size=4, lr=2e-3, seed=0)
    after, named_after = codec_error(vqmodel)
    assert after < 0.3 * error
    assert named_after > named + 0.05
    assert not vqmodel.training
    assert torch.equal(vqmodel.quantize.embedding.weight, fixed)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_codec_takes_any_number_of_steps(steps, small_model):
    train_codec(small_model.model.vqmodel, steps=steps, batch_size=1, lr=2e-3, seed=0)


def test_pixels_go_there_and_back():
    codes = draw_codes(3, np.random.default_rng(0))
    assert (to_uint8(to_pixels(codes) + 1e-4) == atlas.paint(codes.numpy())).all()


class ExactCodec:
    """Decodes as the atlas paints, but for the scenes whose numbers are in `blank`; names all patches but the first."""

    def __init__(self, blank: set[int]):
        self.blank, self.calls = blank, 0

    def decode(self, codes):
        pixels = to_pixels(codes) + 1e-4
        if self.calls % 2 == 0:  # from ground-truth codes; the other calls are from the encoder's
            for i in range(len(pixels)):
                if self.calls // 2 * 50 + i in self.blank:
                    pixels[i] = 0
        self.calls += 1
        return pixels

    def encode(self, pixels):
        picture = ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        tiles = picture.reshape(-1, 6, 8, 6, 8, 3).swapaxes(2, 3).reshape(len(picture), 36, -1)
        table = {patch.tobytes(): code for code, patch in enumerate(atlas.patches())}
        named = torch.tensor([[table[tile.tobytes()] for tile in image] for image in tiles])
        named[:, 0] = named[:, 0] // 4 * 4 + (named[:, 0] + 1) % 4  # another grain
        return type("Encoded", (), {"image_tokens": named.flatten()})()


def test_codec_is_measured_as_it_says():
    verdict = measure_codec(ExactCodec(blank={0, 7, 60}), num_scenes=100)
    assert verdict["read_share"] == 0.97
    assert verdict["reconstruction_share"] == 1.0
    assert verdict["named_share"] == pytest.approx(35 / 36)


def test_language_learns_both_tasks(small_model, tokenizer, templates):
    def maker(seed: int) -> ExampleMaker:
        return ExampleMaker(tokenizer, templates, seed=seed, unconditional=0.1, planless=0.15)

    untouched = {
        name: value.clone()
        for name, value in small_model.state_dict().items()
        if name.startswith(("model.vqmodel", "model.vision_model"))
    }
    held_out = maker(1).batch(32, 0.0, 0.0)
    with torch.no_grad():
        before = torch.stack(losses(small_model.eval(), held_out))
    train_language(small_model, maker(0), steps=30, batch_size=16, muon_lr=0.02, adamw_lr=3e-3)
    with torch.no_grad():
        after = torch.stack(losses(small_model, held_out))
    assert (before > torch.tensor([5.5, 6.0])).all()  # about log V: 6.1 and 6.5 nats
    assert after[0] < 0.65 * before[0]
    assert after[1] < 0.75 * before[1]
    assert untouched and all(torch.equal(small_model.state_dict()[name], value) for name, value in untouched.items())


def test_trained_parameters_are_all_that_draws_and_plans(small_model):
    trained = {name for name, _ in trained_parameters(small_model)}
    rest = {name for name, _ in small_model.named_parameters()} - trained
    assert {name.split(".")[1] for name in rest} == {"vqmodel", "vision_model", "aligner"}
    assert {"lm_head.weight", "model.generation_embeddings.weight"} <= trained


def next_token_loss(head: Any, model: Any, embeds: torch.Tensor, token: int) -> float:
    """Of `token` after [T, D] embeddings, alone and without padding."""
    hidden = model.model.language_model(inputs_embeds=embeds[None], use_cache=False).last_hidden_state
    return -head(hidden[0, -1]).log_softmax(-1)[token].item()


@torch.no_grad()
def test_losses_are_those_of_single_tokens_without_padding(small_model, tokenizer, templates):
    for name, parameter in small_model.named_parameters():
        if name.startswith(("model.language_model", "lm_head", "model.gen")) and parameter.ndim == 2:
            parameter.mul_(8)  # fresh weights are so small that context hardly matters
    batch = ExampleMaker(tokenizer, templates, seed=2, unconditional=0.5, planless=0.5).batch(3, 0.0, 0.0)
    text, image = losses(small_model.eval(), batch)

    janus = small_model.model
    words = janus.language_model.get_input_embeddings()
    alone_text, alone_image = [], []
    for i in range(3):
        ids, targets = batch.text_ids[i][batch.text_mask[i]], batch.text_targets[i][batch.text_mask[i]]
        learned = [t for t in range(len(ids)) if targets[t] != -100]
        alone_text += [
            next_token_loss(small_model.lm_head, small_model, words(ids[: t + 1]), int(ids[t + 1])) for t in learned
        ]
        prompt = words(batch.image_ids[i][batch.image_mask[i]])
        drawn = janus.generation_aligner(janus.generation_embeddings(batch.codes[i]))
        alone_image += [
            next_token_loss(janus.generation_head, small_model, torch.cat([prompt, drawn[:t]]), int(batch.codes[i, t]))
            for t in range(36)
        ]
    assert text.item() == pytest.approx(np.mean(alone_text), rel=1e-4)
    assert image.item() == pytest.approx(np.mean(alone_image), rel=1e-4)


def few_steps(settings: dict[str, Any], target: Path) -> dict[str, Any]:
    small = settings | {"text": settings["text"] | SMALL_TEXT, "vq": settings["vq"] | SMALL_VQ, "target": str(target)}
    stages = {stage: settings["stages"][stage] | change for stage, change in FEW_STEPS.items()}
    return small | {"codec": settings["codec"] | {"steps": 5, "batch_size": 4}, "stages": stages}


def test_same_seed_same_weights(settings, tmp_path):
    for make in (make_codec, make_language):
        folders = [tmp_path / make.__name__ / name / "assets" for name in ("first", "again", "other")]
        for folder in folders:
            folder.mkdir(parents=True)
        first, again = (make(few_steps(settings, folder))["weights"] for folder in folders[:2])
        other = make(few_steps(settings, folders[2]) | {"seed": 1})["weights"]
        assert all(torch.equal(value, again[name]) for name, value in first.items())
        assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_a_broken_off_pretraining_goes_on_from_its_last_stage(settings, tmp_path):
    small = few_steps(settings, tmp_path / "assets")
    whole = make_language(small)
    kept = {path.name.split("_")[0]: path for path in tmp_path.glob("*.pt")}
    assert set(kept) == set(whole["seconds"]) == set(FEW_STEPS)
    kept["blur"].unlink()
    rest = make_language(small)
    assert set(rest["seconds"]) == {"blur"}
    assert all(torch.equal(value, whole["weights"][name]) for name, value in rest["weights"].items())
    changed = small | {"stages": small["stages"] | {"plan": small["stages"]["plan"] | {"steps": 1}}}
    assert set(make_language(changed)["seconds"]) == {"plan", "blur"}


@pytest.mark.slow
def test_the_whole_command_leaves_what_a_policy_loads(settings, tmp_path):
    """Small networks, few steps: prompts, model and verdict; the weights are those of its two parts run alone."""
    changes = few_steps(settings, tmp_path / "again" / "assets")
    (tmp_path / "again").mkdir()
    changed = {part: changes[part] for part in ("text", "vq", "codec")}
    changed |= {f"stages.{stage}": recipe for stage, recipe in changes["stages"].items()}
    overrides = [
        f"{part}.{key}={str(value).replace(' ', '')}" for part, node in changed.items() for key, value in node.items()
    ]
    command = [sys.executable, "-m", "egrpo.shapes.pretrain", f"target={tmp_path / 'assets'}", *overrides]
    ran = subprocess.run(
        [*command, f"hydra.run.dir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1] == str(tmp_path / "assets")

    assets = tmp_path / "assets"
    assert len(read_prompts(assets / "prompts" / "train.jsonl")) == 1600
    assert len(read_prompts(assets / "prompts" / "validation.jsonl")) == 800
    verdict = json.loads((assets / "verdict.json").read_text())
    assert set(verdict) == {"codec", "policy", "seconds", "seed"}
    numbers = [*verdict["codec"].values(), *verdict["policy"].values(), *verdict["seconds"].values()]
    assert np.isfinite(numbers).all()
    assert 0 <= verdict["policy"]["strict"] <= verdict["policy"]["soft"] <= 1

    weights = load_file(assets / "janus" / "model.safetensors")
    for name, value in make_codec(changes)["weights"].items():
        assert torch.equal(weights[f"model.vqmodel.{name}"], value), name
    for name, value in make_language(changes)["weights"].items():
        assert torch.equal(weights[name], value), name
    policy = JanusPolicy.from_pretrained(assets / "janus", settings["model"]["templates"], max_plan_tokens=8)
    rollout = policy.rollout(["a red circle"], 2, seed=0, step=0, cot=True, cfg_weight=1.5)
    assert rollout.pixels.shape == (2, 48, 48, 3)


def test_random_scenes_are_what_the_codec_sees():
    codes = draw_codes(5, np.random.default_rng(6))
    rng = np.random.default_rng(6)
    assert codes.tolist() == [atlas.encode(random_scene(rng), rng).tolist() for _ in range(5)]
