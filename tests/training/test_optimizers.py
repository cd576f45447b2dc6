"""Master weights: small updates of bfloat16 weights add up, and a resumed optimizer goes on exactly, at its rate."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from egrpo.training.optimizers import MasterAdamW, go_on_with_schedule

SETTINGS = {"lr": 1e-6, "betas": (0.9, 0.999), "weight_decay": 0.01}


def gradients(steps: int, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, generator=generator).to(torch.bfloat16).to(dtype) for _ in range(steps)]


def stepped(optimizer: torch.optim.Optimizer, p: torch.nn.Parameter, grads: list[torch.Tensor]) -> None:
    for grad in grads:
        p.grad = grad.clone()
        optimizer.step()
        assert p.grad.dtype == p.dtype


def start(dtype: torch.dtype) -> torch.nn.Parameter:
    value = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)) * 0.02
    return torch.nn.Parameter(value.to(torch.bfloat16).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masters_follow_float32_and_weights_are_the_masters_rounded(dtype):
    low, full = start(dtype), start(torch.float32)
    ours, plain = MasterAdamW([low], **SETTINGS), torch.optim.AdamW([full], **SETTINGS)
    stepped(ours, low, gradients(50, dtype))
    stepped(plain, full, gradients(50, torch.float32))
    master = ours.state[low]["master"]
    assert master.dtype == ours.state[low]["exp_avg"].dtype == torch.float32
    torch.testing.assert_close(master, full.detach(), atol=1e-9, rtol=1e-6)
    assert torch.equal(low.detach(), master.to(dtype)) and low.dtype == dtype


@pytest.mark.parametrize("kind, dtype", [(torch.optim.AdamW, torch.float32), (MasterAdamW, torch.bfloat16)])
def test_one_kernel_for_all_weights_takes_the_same_steps(kind, dtype):
    """`fused=True`, as configured: the same numbers within rounding, and states that a resumed run reads."""
    plain, fused = start(dtype), start(dtype)
    settings = SETTINGS | {"lr": 1e-3}
    one, two = kind([plain], **settings), kind([fused], **settings, fused=True)
    stepped(one, plain, gradients(20, dtype))
    stepped(two, fused, gradients(20, dtype))
    masters = [opt.state[p].get("master", p.detach()) for opt, p in ((one, plain), (two, fused))]
    torch.testing.assert_close(*masters, atol=1e-7, rtol=1e-5)
    assert not torch.equal(masters[0], start(dtype).detach().float())
    again = torch.nn.Parameter(fused.detach().clone())
    resumed = kind([again], **settings, fused=True)
    resumed.load_state_dict(copy.deepcopy(two.state_dict()))
    for optimizer, p in ((two, fused), (resumed, again)):
        stepped(optimizer, p, gradients(3, dtype))
    assert torch.equal(again, fused)


def test_updates_that_would_round_away_add_up():
    weight = torch.full((4,), 0.02, dtype=torch.bfloat16)
    ours, plain = torch.nn.Parameter(weight.clone()), torch.nn.Parameter(weight.clone())
    settings = {"lr": 1e-6, "weight_decay": 0.0}
    grads = [torch.ones(4, dtype=torch.bfloat16)] * 300
    stepped(MasterAdamW([ours], **settings), ours, grads)
    stepped(torch.optim.AdamW([plain], **settings), plain, grads)
    assert torch.equal(plain.detach(), weight)
    torch.testing.assert_close(ours.detach().float(), torch.full((4,), 0.02 - 3e-4), atol=1e-4, rtol=0)
    assert (ours.detach() < weight).all()


def test_float32_weights_are_plain_adamw():
    ours, plain = start(torch.float32), start(torch.float32)
    stepped(MasterAdamW([ours], **SETTINGS), ours, gradients(5, torch.float32))
    stepped(torch.optim.AdamW([plain], **SETTINGS), plain, gradients(5, torch.float32))
    assert torch.equal(ours, plain)


def test_a_resumed_optimizer_goes_on_exactly():
    grads = gradients(6, torch.bfloat16)
    whole, first = start(torch.bfloat16), start(torch.bfloat16)
    one, two = MasterAdamW([whole], **SETTINGS), MasterAdamW([first], **SETTINGS)
    stepped(one, whole, grads)
    stepped(two, first, grads[:3])
    again = torch.nn.Parameter(first.detach().clone())
    three = MasterAdamW([again], **SETTINGS)
    three.load_state_dict(copy.deepcopy(two.state_dict()))
    stepped(three, again, grads[3:])
    assert torch.equal(again, whole)
    for name in ("master", "exp_avg", "exp_avg_sq"):
        assert torch.equal(three.state[again][name], one.state[whole][name]), name


def scheduled(lr: float) -> tuple[torch.optim.Optimizer, Any]:
    """Warm-up over eight steps."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=lr)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 8))


@pytest.mark.parametrize("new_optimizer", [False, True])
@pytest.mark.parametrize("lr", [0.8, 0.08])
def test_a_resumed_run_has_the_rate_of_its_settings_at_its_step(new_optimizer: bool, lr: float):
    optimizer, scheduler = scheduled(0.8)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    resumed, resumed_scheduler = scheduled(lr)
    if not new_optimizer:
        resumed.load_state_dict(optimizer.state_dict())
    resumed_scheduler.load_state_dict(scheduler.state_dict())
    go_on_with_schedule(resumed_scheduler)
    for step in (3, 4, 5):
        rate = resumed.param_groups[0]["lr"]
        assert rate == pytest.approx(lr * step / 8) and resumed_scheduler.get_last_lr() == [rate]
        resumed.step()
        resumed_scheduler.step()


@pytest.fixture
def mesh(tmp_path) -> Any:
    """A device mesh of this process alone."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "s"), 1), rank=0, world_size=1
    )
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("fused", [False, True])
def test_masters_of_divided_weights_are_divided_alike(mesh, fused: bool):
    """Under FSDP2: float32 states in the weight's own division, and the numbers of a weight that is whole."""
    whole = start(torch.bfloat16)
    divided = torch.nn.Parameter(distribute_tensor(start(torch.bfloat16).detach(), mesh, [Shard(0)]))
    settings = SETTINGS | {"lr": 1e-3, "fused": fused}
    one, two = MasterAdamW([whole], **settings), MasterAdamW([divided], **settings)
    for grad in gradients(5, torch.bfloat16):
        whole.grad, divided.grad = grad.clone(), distribute_tensor(grad, mesh, [Shard(0)])
        one.step()
        two.step()
    assert divided.dtype == torch.bfloat16 and divided.grad is not None
    for name in ("master", "exp_avg", "exp_avg_sq"):
        value = two.state[divided][name]
        assert isinstance(value, DTensor) and value.placements == divided.placements, name
        assert value.dtype == value.to_local().dtype == torch.float32 and value.device == divided.device, name
        assert torch.equal(value.full_tensor(), one.state[whole][name]), name
    assert torch.equal(divided.detach().full_tensor(), whole)


def test_buckets_take_the_steps_of_all_at_once(monkeypatch):
    def steps(size: int) -> list[torch.Tensor]:
        monkeypatch.setattr("egrpo.training.optimizers.BUCKET", size)
        weights = [start(torch.bfloat16) for _ in range(5)]
        optimizer = MasterAdamW(weights, **SETTINGS | {"lr": 1e-3})
        for number, grad in enumerate(gradients(3, torch.bfloat16)):
            for i, p in enumerate(weights):
                p.grad = None if (i + number) % 4 == 0 else grad * (i + 1)
            optimizer.step()
        return [optimizer.state[p]["master"] for p in weights]

    assert all(torch.equal(a, b) for a, b in zip(steps(2**28), steps(20), strict=True))
