"""Deformable attention against transformers' own, and a case by hand."""

from __future__ import annotations

import pytest
import torch
from transformers.models.grounding_dino.modeling_grounding_dino import MultiScaleDeformableAttention

from egrpo.paths import resolve
from egrpo.rewards import GroundingDinoReward
from egrpo.rewards.deformable import DeformableSampling, deformable_sums

SHAPES = [(7, 5), (4, 3), (1, 2)]


def inputs(batch: int = 2, queries: int = 11, heads: int = 3, width: int = 8, points: int = 4):
    positions = sum(high * wide for high, wide in SHAPES)
    value = torch.randn(batch, positions, heads, width)
    locations = torch.rand(batch, queries, heads, len(SHAPES), points, 2) * 1.6 - 0.3  # some outside
    weights = torch.randn(batch, queries, heads, len(SHAPES) * points).softmax(-1).view(locations.shape[:-1])
    return value, SHAPES, locations, weights


def test_one_sample_by_hand():
    value = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)  # 2 x 2
    points = torch.tensor([[0.25, 0.25], [0.5, 0.5], [1.0, 0.75], [9.0, 0.5]])  # first pixel, middle, edge, far outside
    found = deformable_sums(value, [(2, 2)], points.view(1, 4, 1, 1, 1, 2), torch.ones(1, 4, 1, 1, 1))
    assert found.flatten().tolist() == [1.0, 2.5, 2.0, 0.0]


def test_it_is_the_librarys_attention():
    torch.manual_seed(0)
    value, shapes, locations, weights = inputs()
    wanted = MultiScaleDeformableAttention()(value, None, shapes, None, locations, weights, 64)
    torch.testing.assert_close(deformable_sums(value, shapes, locations, weights), wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_are_summed_in_float32_and_returned(dtype):
    torch.manual_seed(0)
    value, shapes, locations, weights = inputs()
    found = DeformableSampling()(value.to(dtype), None, shapes, None, locations, weights, 64)
    wanted = deformable_sums(value.to(dtype).float(), shapes, locations, weights)
    assert found.dtype == dtype and torch.equal(found, wanted.to(dtype))


def test_the_detector_uses_it_and_predicts_as_before():
    reward = GroundingDinoReward(resolve("package:egrpo/shapes/assets/rewards/gdino"))
    samplers = [m for m in reward.placement.model.modules() if hasattr(m, "attn") and hasattr(m, "sampling_offsets")]
    assert len(samplers) >= 2 and all(isinstance(module.attn, DeformableSampling) for module in samplers)
    pixels, ids = torch.randn(1, 3, 64, 96), torch.tensor([[101, 5, 1012, 102]])
    with reward.placement() as model:
        found = model(pixel_values=pixels, input_ids=ids)
        for module in samplers:
            module.attn = MultiScaleDeformableAttention()
        wanted = model(pixel_values=pixels, input_ids=ids)
    torch.testing.assert_close(found.pred_boxes, wanted.pred_boxes, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.logits[..., :4], wanted.logits[..., :4], atol=1e-4, rtol=0)
