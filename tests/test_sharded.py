"""The checkpoint of FSDP2: parts of any number of ranks, read by any other; large ones written in the background."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from egrpo import sharded
from egrpo.checkpoints import check_checkpoint, saved_position, saved_ranks, saved_weights
from egrpo.tensor_files import CheckpointError
from egrpo.training.saving import queue, save_parts

STATES = ("exp_avg", "exp_avg_sq", "master", "step")


def one_rank(rank: int, count: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    torch.save(function(*arguments), folder / f"result_{rank}.pt")
    dist.destroy_process_group()


def on_ranks(function: Callable[..., Any], folder: Path, *arguments: Any, count: int = 2) -> list[Any]:
    """Calls a function on forks of this process, which are ranks over gloo; their results in rank order."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=one_rank, args=(r, count, folder, function, arguments)) for r in range(count)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0] * count
    return [torch.load(folder / f"result_{rank}.pt") for rank in range(count)]


class Model(nn.Module):
    """Weights that divide evenly, unevenly, and into fewer parts than there are ranks."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.even = nn.Linear(4, 6, bias=False)
        self.odd = nn.Linear(4, 5, bias=True)
        self.one = nn.Linear(3, 1, bias=False)


def divided(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, dict[int, str]]:
    """A model in bfloat16, divided over the ranks, and its optimizer."""
    model = Model(seed).bfloat16()
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 * (seed + 1))
    return model, optimizer, {id(p): name for name, p in model.named_parameters()}


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Gradients that differ by weight and entry; and a state of the kind that keeps masters."""
    for at, p in enumerate(model.parameters()):
        whole = torch.arange(p.numel(), dtype=torch.float32).view(p.shape).sin() * (at + 1)
        p.grad = distribute_tensor(whole.to(p.dtype), p.device_mesh, p.placements)
    optimizer.step()
    for p, state in optimizer.state.items():
        state["master"] = p.detach().float() + 1e-4


def whole(tensor: Any) -> torch.Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    names = {id(p): name for name, p in model.named_parameters()}
    found = {name: whole(p) for name, p in model.named_parameters()}
    states = {f"{names[id(p)]}/{k}": whole(v) for p, state in optimizer.state.items() for k, v in state.items()}
    return found | states


def write(folder: Path, background_from: float, steps: int = 2) -> dict[str, torch.Tensor]:
    """Saves a divided model after some steps; with a background, it trains on before the checkpoint is written."""
    model, optimizer, names = divided(0)
    for _ in range(steps):
        step(model, optimizer)
    expected = everything(model, optimizer)
    parts = {
        sharded.WEIGHTS: dict(model.named_parameters()),
        sharded.OPTIMIZER: sharded.optimizer_tensors(optimizer, 0, names),
    }
    position = {"global_step": steps, sharded.OPTIMIZERS: [sharded.optimizer_position(optimizer, names)]}
    save_parts(parts, position, folder / "last.ckpt", dist.new_group(backend="gloo"), background_from)
    for _ in range(3):
        step(model, optimizer)
    queue.wait()
    return expected


def read(folder: Path) -> dict[str, torch.Tensor]:
    model, optimizer, names = divided(1)
    sharded.load_weights(folder / "last.ckpt", dict(model.named_parameters()))
    sharded.load_optimizer(folder / "last.ckpt", optimizer, 0, names)
    found = everything(model, optimizer)
    found["lr"] = torch.tensor(optimizer.param_groups[0]["lr"])
    found["types"] = torch.tensor([optimizer.state[p]["master"].dtype == torch.float32 for p in model.parameters()])
    step(model, optimizer)  # it goes on
    return found


def check(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert float(found.pop("lr")) == pytest.approx(0.1) and bool(found.pop("types").all())
    assert found.keys() == expected.keys() and len(found) == 4 * (1 + len(STATES))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("background_from", [0.0, float("inf")], ids=["background", "at once"])
def test_any_number_of_ranks_reads_the_parts_of_any_other(tmp_path: Path, background_from: float):
    expected = on_ranks(write, tmp_path / "call", tmp_path, background_from)[0]
    path = tmp_path / "last.ckpt"
    assert saved_ranks(path) == 2 and saved_position(path) == {"global_step": 2}
    assert all(p.name == "last.ckpt" or p.name == "call" for p in tmp_path.iterdir())
    weights = saved_weights(path)
    assert set(weights) == {"even.weight", "odd.weight", "odd.bias", "one.weight"}
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    two = on_ranks(read, tmp_path / "call", tmp_path)
    one = on_ranks(read, tmp_path / "call", tmp_path, count=1)
    for found in (*two, *one):
        check(found, expected)


def test_two_ranks_read_the_part_of_one(tmp_path: Path):
    expected = on_ranks(write, tmp_path / "call", tmp_path, 0.0, count=1)[0]
    for found in on_ranks(read, tmp_path / "call", tmp_path):
        check(found, expected)


def write_where_there_is_no_room(folder: Path) -> str:
    """Rank 1 cannot write: all ranks must know, and the checkpoint of before must stay."""
    write(folder, 0.0)
    if dist.get_rank() == 1:

        def full(*arguments: Any, **more: Any) -> None:
            raise OSError(28, "No space left on device")

        torch.distributed.checkpoint.hf_storage.HuggingFaceStorageWriter.write_data = full  # type: ignore[method-assign]
    try:
        write(folder, 0.0, steps=5)
    except CheckpointError as error:
        return str(error)
    return ""


def test_a_failure_of_one_rank_in_the_background_is_raised_on_all(tmp_path: Path):
    for said in on_ranks(write_where_there_is_no_room, tmp_path / "call", tmp_path):
        assert "last.ckpt could not be written" in said and "No space left on device" in said and "resume" in said
    assert saved_position(tmp_path / "last.ckpt") == {"global_step": 2}
    assert not list(tmp_path.glob("*.part"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    on_ranks(write, folder / "call", folder, float("inf"), count=1)
    return folder / "last.ckpt"


@pytest.mark.parametrize("fault, said", [("missing", "is not there"), ("cut", "cut short"), ("empty", "is empty")])
@pytest.mark.parametrize("name", ["weights", "optimizer", "position.pt"])
def test_a_folder_that_is_not_whole_is_refused(written: Path, tmp_path: Path, name: str, fault: str, said: str):
    path = tmp_path / "last.ckpt"
    shutil.copytree(written, path)
    victim = path / name if name.endswith(".pt") else next((path / name).iterdir())
    content = victim.read_bytes()
    victim.unlink()
    if fault != "missing":
        victim.write_bytes(b"" if fault == "empty" else content[:-1])
    for reader in (saved_weights, saved_position, lambda p: check_checkpoint(str(p))):
        with pytest.raises(CheckpointError, match=said):
            reader(path)


@pytest.mark.parametrize("index", ["", "{", "[1]", json.dumps({"format": 99, "ranks": 1, "files": {}})])
def test_an_index_that_is_none_is_refused(written: Path, tmp_path: Path, index: str):
    path = tmp_path / "last.ckpt"
    shutil.copytree(written, path)
    (path / "index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"last\.ckpt"):
        check_checkpoint(str(path))


def test_training_continues_while_a_checkpoint_is_written():
    done: list[str] = []

    def slow() -> None:
        time.sleep(0.3)
        done.append("written")

    start = time.monotonic()
    queue.run(slow, background=True)
    queue.run(lambda: done.append("linked"))
    assert time.monotonic() - start < 0.2 and not done
    queue.wait()
    assert done == ["written", "linked"]


def test_what_follows_a_failed_write_is_not_done_and_the_error_comes_once():
    done: list[str] = []

    def fail() -> None:
        time.sleep(0.05)
        raise CheckpointError("no room")

    queue.run(fail, background=True)
    queue.run(lambda: done.append("removed the one before"), background=True)
    with pytest.raises(CheckpointError, match="no room"):
        queue.wait()
    assert not done
    queue.wait()
    queue.run(lambda: done.append("next"))
    assert done == ["next"]
