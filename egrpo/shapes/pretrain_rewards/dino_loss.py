"""What a grounded detector learns from: one-to-one matching of proposals to things, then box and token losses.

transformers' own loss takes the two-stage scores from the query embeddings, so that the proposals that are chosen for
the decoder would never learn; and it knows one phrase for a box, where a red circle is a "circle", too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from egrpo.shapes.pretrain_rewards.boxes import overlaps

CLASS, L1, GIOU = 2.0, 5.0, 2.0  # weights of the three terms, in the matching cost and in the loss
GAMMA = 2.0  # of the focal loss


@dataclass(frozen=True)
class Targets:
    """What the captions name on B pictures, padded to T things each, L caption tokens."""

    boxes: Tensor  # [B, T, 4]
    tokens: Tensor  # [B, T, L] float, 1 at the tokens of every phrase that is true of the thing
    present: Tensor  # [B, T] bool, False at padding


def focal(logits: Tensor, targets: Tensor, alpha: float) -> Tensor:
    """Elementwise sigmoid focal loss; `alpha` weighs the positives, 1 - alpha the negatives."""
    probability = logits.sigmoid()
    wrong = torch.where(targets > 0, 1 - probability, probability)
    weight = torch.where(targets > 0, alpha, 1 - alpha)
    return weight * wrong**GAMMA * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, targets: Targets, alpha: float) -> Tensor:
    """[B, Q] long: which thing each proposal stands for, -1 for none; the cheapest one-to-one assignment.

    `logits` [B, Q, L], finite; `boxes` [B, Q, 4]. The cost of a pair is the loss that it would save or pay: the focal
    loss as a positive minus as a negative, mean over the thing's tokens, L1 and GIoU of the boxes.
    """
    ones = torch.ones_like(logits)
    gain = focal(logits, ones, alpha) - focal(logits, 0 * ones, alpha)
    share = targets.tokens / targets.tokens.sum(-1, keepdim=True).clamp(min=1)
    distance = (boxes[:, :, None] - targets.boxes[:, None]).abs().sum(-1)
    giou = overlaps(boxes[:, :, None], targets.boxes[:, None])[1]
    cost = CLASS * gain @ share.transpose(1, 2) + L1 * distance - GIOU * giou
    chosen = torch.full(logits.shape[:2], -1)
    for row, (costs, count) in enumerate(zip(cost.numpy(), targets.present.sum(1).tolist(), strict=True)):
        queries, things = linear_sum_assignment(costs[:, :count])
        chosen[row, torch.from_numpy(queries)] = torch.from_numpy(things)
    return chosen


def matched_loss(logits: Tensor, boxes: Tensor, targets: Targets, token_mask: Tensor, alpha: float) -> Tensor:
    """Losses [3] of one set of proposals: naming, distance and GIoU, not yet weighed. They are sums over the batch,
    divided by its number of things.

    `logits` [B, Q, L], finite; `boxes` [B, Q, 4]; `token_mask` [B, L] bool, False at padding of captions.
    """
    chosen = match(logits.detach(), boxes.detach(), targets, alpha)
    count = targets.present.sum().clamp(min=1)
    row, query = torch.nonzero(chosen >= 0, as_tuple=True)
    thing = chosen[row, query]
    wanted = torch.zeros_like(logits)
    wanted[row, query] = targets.tokens[row, thing]
    naming = (focal(logits, wanted, alpha) * token_mask[:, None]).sum() / count
    placed, truth = boxes[row, query], targets.boxes[row, thing]
    distance = (placed - truth).abs().sum() / count
    giou = (1 - overlaps(placed, truth)[1]).sum() / count
    return torch.stack([naming, distance, giou])


def detection_loss(
    model: Any, output: Any, targets: Targets, token_mask: Tensor, alpha: float
) -> tuple[Tensor, dict[str, float]]:
    """Weighed loss, mean over the stages: the encoder's proposals, all of them, and each decoder layer's. Beside it
    the last layer's terms.

    `output`: of `GroundingDinoForObjectDetection`; the scores of the decoder layers before the last are computed here
    from its intermediate states.
    """
    length = token_mask.shape[1]
    stages = [(output.enc_outputs_class[..., :length], output.enc_outputs_coord_logits.sigmoid())]
    text = output.encoder_last_hidden_state_text
    for level in range(output.intermediate_hidden_states.shape[1]):
        hidden = output.intermediate_hidden_states[:, level]
        before = output.intermediate_reference_points[:, level - 1] if level else output.init_reference_points
        boxes = (model.bbox_embed[level](hidden) + torch.logit(before, eps=1e-5)).sigmoid()
        stages.append((hidden @ text.transpose(1, 2), boxes))
    losses = [
        matched_loss(logits.masked_fill(~token_mask[:, None], 0.0), boxes, targets, token_mask, alpha)
        for logits, boxes in stages
    ]
    names = ("naming", "distance", "giou")
    terms = dict(zip(names, losses[-1].tolist(), strict=True))
    return (torch.stack(losses).mean(0) * torch.tensor([CLASS, L1, GIOU])).sum(), terms
