"""Packed weights give the same results, and nothing of them stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from egrpo.policy import packed
from egrpo.policy.backbone import Backbone
from egrpo.policy.drawing import Drawing
from egrpo.policy.packed import packed_linears
from egrpo.policy.sampling import draw_image_tokens
from tests.policy.test_sampling import PAD, PROMPTS, right_padded, uniforms

pytestmark = pytest.mark.skipif(not packed._available(), reason="this build of torch has no oneDNN")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 512), (16, 1, 512), (packed.ROWS + 1, 512)])
def test_a_layer_gives_the_same(bias: bool, shape: tuple[int, ...]):
    torch.manual_seed(0)
    layer, x = nn.Linear(512, 600, bias=bias), torch.randn(shape)
    with torch.no_grad():
        expected = layer(x)
        with packed_linears([layer], 1, packed.TURNS):
            assert "forward" in vars(layer)
            found = layer(x)
        assert "forward" not in vars(layer)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        layer.weight.mul_(2)
        with packed_linears([layer], 1, packed.TURNS):  # packed anew
            torch.testing.assert_close(
                layer(x), nn.functional.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5
            )


def test_what_gains_nothing_is_left_alone(monkeypatch):
    small, half, large = nn.Linear(64, 64), nn.Linear(512, 600).bfloat16(), nn.Linear(512, 600)
    cases = [(small, 1, 99), (half, 1, 99), (large, 1, packed.TURNS - 1), (large, packed.ROWS + 1, 99)]
    for layer, rows, turns in cases:
        with packed_linears([layer], rows, turns):
            assert "forward" not in vars(layer)
    monkeypatch.setattr(packed, "MOST_BYTES", 1000)
    with packed_linears([large], 1, 99):
        assert "forward" not in vars(large)


def test_drawing_on_packed_weights_draws_the_same(model, monkeypatch):
    ids, mask = right_padded(PROMPTS)
    settings = {"num_tokens": 16, "pad": PAD, "how": Drawing(cfg_weight=3.0)}
    plain = draw_image_tokens(Backbone.of(model), ids, mask, uniforms(3), **settings)
    monkeypatch.setattr(packed, "LEAST", 1)
    ran = []
    linear = packed._linear
    monkeypatch.setattr(packed, "_linear", lambda *arguments: ran.append(1) or linear(*arguments))
    drawn = draw_image_tokens(Backbone.of(model), ids, mask, uniforms(3), **settings)
    assert ran and torch.equal(drawn.tokens, plain.tokens)
    torch.testing.assert_close(drawn.logps, plain.logps, atol=1e-5, rtol=0)
