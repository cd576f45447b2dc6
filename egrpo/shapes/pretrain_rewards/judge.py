"""A tiny LLaVA-OneVision that says whether a picture is what its prompt asks for, trained from nothing.

Yes and no alone teach slowly. So the vision tower first learns to name patches; then, beside the answers, the language
model learns to describe the picture, to say where the things stand that each phrase names and how they relate, and
which of the demands are met. The heads for that are thrown away.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from egrpo.shapes import atlas
from egrpo.shapes.oracle import spec_of
from egrpo.shapes.plans import cell_of, write_plan
from egrpo.shapes.pretrain_rewards.examples import Painter, draw_example, malform, read, to_tensor, wrong_scene
from egrpo.shapes.pretrain_rewards.judge_measure import measure
from egrpo.shapes.pretrain_rewards.judge_text import IGNORE, NO, YES, Batch, Packer, build_tokenizer
from egrpo.shapes.pretrain_rewards.optim import Optimizers
from egrpo.shapes.pretrain_rewards.questions import questions_for
from egrpo.shapes.pretrain_rewards.store import save_half
from egrpo.shapes.scene import GRID, Spec, Thing, judge, relation_holds
from egrpo.types import TASK_TYPES

__all__ = ["measure", "train"]
log = logging.getLogger(__name__)
DRAWINGS = atlas.NUM_CODES // atlas.VARIANTS  # patches that differ by more than grain
PRACTICE = (*TASK_TYPES, *("spatial", "complex", "non", "numeracy") * 2)  # the hardest come three times as often
WAYS = ("above", "below", "left of", "right of", "next to")  # all that a relation of two things can be
RIGHT, WRONG = 0.45, 0.4  # shares of right scenes and of those with one mistake; the rest is malformed


def build_model(tokenizer: Any, text: dict[str, Any], vision: dict[str, Any]) -> Any:
    """`LlavaOnevisionForConditionalGeneration` with random weights for 48 x 48 pictures in one view."""
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": atlas.SIDE,
            "patch_size": atlas.PATCH,
            "vision_use_head": False,
            **vision,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
            **text,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[atlas.SIDE, atlas.SIDE]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    return LlavaOnevisionForConditionalGeneration(config)


def build_image_processor() -> LlavaOnevisionImageProcessorPil:
    size = {"height": atlas.SIDE, "width": atlas.SIDE}
    pinpoints = [[atlas.SIDE, atlas.SIDE]]
    return LlavaOnevisionImageProcessorPil(
        size=size, image_grid_pinpoints=pinpoints, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def see(model: Any, pixels: Tensor) -> Tensor:
    """[B, 3, 48, 48] -> [B, 36, D] features of the vision tower's last layer, before its final norm."""
    return model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]


class Album:
    """Draws pictures and what they show."""

    def __init__(self, seed: int, pool: int):
        self.rng = np.random.default_rng(seed)
        self.painter = Painter(seed, pool)

    def draw(self, size: int) -> tuple[Tensor, Tensor, list[Any], list[list[Thing]]]:
        """Pixels [B, 3, 48, 48], codes [B, 36], the prompts, and the things in each picture."""
        rng = self.rng
        records, scenes, broken = [], [], []
        for i in range(size):
            record, things = draw_example(rng, PRACTICE[rng.integers(len(PRACTICE))])
            kind = rng.random()
            if RIGHT <= kind < RIGHT + WRONG:
                things = wrong_scene(things, spec_of(record), rng)
            elif kind >= RIGHT + WRONG:
                broken.append(i)
            records.append(record)
            scenes.append(things)
        codes = np.stack([atlas.encode(things, rng) for things in scenes])
        for i in broken:
            codes[i] = malform(codes[i], rng)
        pictures = self.painter.paint(codes, rng)
        for i, things in zip(broken, read(pictures[broken]), strict=True):
            scenes[i] = things
        return to_tensor(pictures), torch.from_numpy(codes), records, scenes


def train_vision(model: Any, album: Album, *, steps: int, batch_size: int, lr: float) -> None:
    """Trains the vision tower in place to name, at each patch, the drawings of its cell's four patches."""
    tower = model.model.vision_tower
    head = nn.Linear(tower.config.hidden_size, 4 * DRAWINGS)
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min(1, (i + 1) / 20, 1.02 - i / steps))
    side = atlas.SIDE // atlas.PATCH
    start = time.monotonic()
    for step in range(steps):
        pixels, codes, _, _ = album.draw(batch_size)
        drawings = (codes // atlas.VARIANTS).view(-1, side, side)
        cells = drawings.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)  # [B, 3, 3, 4]
        wanted = cells.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)  # [B, 36, 4]
        named = head(see(model, pixels)).unflatten(-1, (4, DRAWINGS))
        loss = F.cross_entropy(named.flatten(0, 2), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            right = (named.argmax(-1) == wanted)[wanted > 0].float().mean().item()
            seconds = time.monotonic() - start
            log.info("orm vision %d/%d: loss %.3f, named %.3f, %.0f s", step, steps, loss.item(), right, seconds)


class Demands(nn.Module):
    """Throw-away heads: where the things stand that a phrase names, how two of them relate, and which of a prompt's
    demands are met."""

    def __init__(self, width: int):
        super().__init__()
        self.place = nn.Linear(width, GRID * GRID)
        self.related = nn.Linear(width, 3 + len(WAYS))
        self.met = nn.Linear(width, 3)


def demands_met(things: list[Thing], spec: Spec) -> list[float]:
    """[number of things, parts, relation or bond]: 1 met, 0 not; the last is -1 where nothing of the kind is asked for
    or the parts are not there."""
    bare = Spec(spec.parts)
    count = float(len(things) == len(spec.slots))
    surplus = max(0, len(things) - len(spec.slots)) / len(spec.slots)
    parts = float(judge(things, bare) >= 1 - surplus - 1e-9)
    if spec == bare or not (count and parts):
        return [count, parts, -1.0]
    return [count, parts, float(judge(things, spec) == 1)]


def read_states(model: Any, batch: Batch, pixels: Tensor) -> tuple[Tensor, ...]:
    """Hidden states [B, L, D] before, between and after the language model's layers, of pictures [B, 3, 48, 48]."""
    llava = model.model
    embeds = llava.language_model.get_input_embeddings()(batch.ids)
    patches = llava.multi_modal_projector(see(model, pixels))
    newline = llava.image_newline.expand(len(pixels), 1, -1)
    shown = torch.cat([patches, newline], 1)
    embeds = embeds.masked_scatter((batch.ids == model.config.image_token_index)[..., None], shown)
    output = llava.language_model(
        inputs_embeds=embeds,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
        output_hidden_states=True,
    )
    return tuple(output.hidden_states)


def noun_facts(batch: Batch, things: list[list[Thing]], specs: list[Spec]) -> tuple[Tensor, Tensor]:
    """What is to be known where a part's phrase ends: cells [M, 9] float, 1 where a thing stands that it describes, and
    relations [M, 8] float, -1 where there is nothing to know: are there enough of them; how the first part's thing
    stands to the second's (`WAYS`); whether the two share colour and texture."""
    cells = torch.zeros(len(batch.nouns), GRID * GRID)
    relations = torch.full((len(batch.nouns), 3 + len(WAYS)), -1.0)
    for i, ((row, _), (number, part)) in enumerate(zip(batch.nouns.tolist(), batch.noun_of.tolist(), strict=True)):
        parts = specs[number].parts
        found = [[thing for thing in things[row] if p.share_right(thing) == 1] for p in parts]
        for thing in found[part]:
            cells[i, cell_of(thing)] = 1
        relations[i, 0] = len(found[part]) >= parts[part].count
        if part == 1 and len(found[0]) == len(found[1]) == 1 and found[0] != found[1]:
            first, second = found[0][0], found[1][0]
            known = [relation_holds(first, second, way) for way in WAYS]
            known += [first.color == second.color, first.texture == second.texture]
            relations[i, 1:] = torch.tensor(known)
    return cells, relations


def losses(
    model: Any,
    heads: Demands,
    batch: Batch,
    pixels: Tensor,
    things: list[list[Thing]],
    specs: list[Spec],
    answer_ids: tuple[int, int],
) -> dict[str, Tensor]:
    """Mean losses in nats: `answer` (yes and no weighed equally), `plan`, `place`, `related` and `met`.

    `things`: of each picture; `specs`: of each answer; `answer_ids`: of the tokens yes and no.
    """
    states = read_states(model, batch, pixels)
    hidden = states[-1]
    wanted = batch.targets != IGNORE
    plan = F.cross_entropy(model.lm_head(hidden[wanted]), batch.targets[wanted]) if wanted.any() else hidden.sum() * 0
    at = hidden[batch.answers[:, 0], batch.answers[:, 1]]
    truth = torch.where(batch.yes, *answer_ids)
    share = batch.yes.float().mean().clamp(0.05, 0.95)
    weight = torch.where(batch.yes, 0.5 / share, 0.5 / (1 - share))
    answer = (F.cross_entropy(model.lm_head(at), truth, reduction="none") * weight).mean()
    rows = batch.answers[:, 0].tolist()
    met = torch.tensor([demands_met(things[row], spec) for row, spec in zip(rows, specs, strict=True)])
    asked = met >= 0
    met_loss = F.binary_cross_entropy_with_logits(heads.met(at)[asked], met[asked])
    at_nouns = [state[batch.nouns[:, 0], batch.nouns[:, 1]] for state in states]
    cells, relations = noun_facts(batch, things, specs)
    middle = (len(states) - 1) // 2  # early enough for later layers to use what is found there
    place = F.binary_cross_entropy_with_logits(heads.place(at_nouns[middle]), cells)
    known = relations >= 0
    related = F.binary_cross_entropy_with_logits(heads.related(at_nouns[middle + 1])[known], relations[known])
    return {"answer": answer, "plan": plan, "place": place, "related": related, "met": met_loss}


def train_judge(
    model: Any,
    packer: Packer,
    album: Album,
    *,
    steps: int,
    batch_size: int,
    questions: int,
    muon_lr: float,
    adamw_lr: float,
    described: float,
    warm_up: int = 20,
) -> None:
    """Trains everything in place on `batch_size` pictures a step with up to `questions` prompts each.

    `described`: share of pictures to describe as well.
    """
    heads = Demands(model.config.text_config.hidden_size)
    optimizers = Optimizers([model, heads], steps=steps, muon_lr=muon_lr, adamw_lr=adamw_lr, warm_up=warm_up)
    answer_ids = tuple(packer.tokenizer.convert_tokens_to_ids([YES, NO]))
    rng = album.rng
    start = time.monotonic()
    for step in range(steps):
        pixels, _, records, things = album.draw(batch_size)
        asked = [questions_for(record, seen, questions, rng) for record, seen in zip(records, things, strict=True)]
        specs = [spec_of(record) for row in asked for record, _ in row]
        plans = [
            write_plan(seen, rng) if seen and all(t.shape for t in seen) and rng.random() < described else None
            for seen in things
        ]
        batch = packer.pack(asked, plans)
        terms = losses(model, heads, batch, pixels, things, specs, answer_ids)
        optimizers.step(torch.stack([*terms.values()]).sum())
        if step % 25 == 0:
            told = ", ".join(f"{name} {term.item():.3f}" for name, term in terms.items())
            log.info("orm %d/%d: %s, %.0f s", step, steps, told, time.monotonic() - start)


def train(
    target: Path,
    *,
    seed: int,
    pool: int,
    vocab_size: int,
    model: dict[str, Any],
    vision: dict[str, Any],
    judge: dict[str, Any],
) -> None:
    """Trains a judge from nothing and writes model, tokenizer and image processor into `target`.

    `pool`: see `Painter`. `model`: settings of `build_model`; `vision` and `judge`: of the two stages.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(vocab_size)
    network = build_model(tokenizer, **model)
    network.train()
    album = Album(seed, pool)
    train_vision(network, album, **vision)
    train_judge(network, Packer(tokenizer), album, **judge)
    network.eval()
    save_half(network, target)
    tokenizer.save_pretrained(target)
    build_image_processor().save_pretrained(target)
