"""What the ranks of a run tell each other. Alone, every function gives back what it was given."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from egrpo.base.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # a slow reward on one rank is no failure; a dead rank is told at once by its connections


def launched() -> int:
    """Processes that a launcher (torchrun, srun) has started for this run; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def connect() -> None:
    """Joins the process group of a launched run: gloo for what is on the CPU, NCCL beside it where there are GPUs.

    Raises:
        UserError: torchrun would restart the run over several nodes in a way that hangs.
    """
    if launched() < 2 or dist.is_initialized():
        return
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun's own store, the same in every attempt
    if kept and int(os.environ["GROUP_WORLD_SIZE"]) > 1 and int(os.environ["TORCHELASTIC_MAX_RESTARTS"]) > 0:
        # Every torchrun counts restarts for itself, so nodes would look for each other in different attempts.
        raise UserError(
            "a restart over several nodes would hang: start torchrun with --rdzv-backend=c10d and "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, or with --max-restarts=0"
        )
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        backend = "cpu:gloo,cuda:nccl"
    store, number, count = next(dist.rendezvous("env://", timeout=PATIENCE))
    if kept:  # a peer's address of the earlier attempt leads nowhere
        store = dist.PrefixStore(f"egrpo_attempt_{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)
    atexit.register(disconnect)


def disconnect() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def seed_this_rank(seed: int) -> None:
    """Gives every rank its own stream of torch's random numbers (dropout); samples have theirs, whichever rank draws
    them. Alone, nothing changes."""
    if world_size() > 1:
        torch.manual_seed(seed * world_size() + rank())


def gather(value: T) -> list[T]:
    """The values of all ranks, in their order, on every rank. Tensors inside must be on the CPU."""
    if world_size() == 1:
        return [value]
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, value)
    return parts


def gather_first(value: T) -> list[T] | None:
    """The values of all ranks, in their order, on the first rank; None on the others."""
    if world_size() == 1:
        return [value]
    parts: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, parts, dst=0)
    return parts


def from_first(value: T) -> T:
    """The value of rank 0, on every rank."""
    if world_size() == 1:
        return value
    parts = [value]
    dist.broadcast_object_list(parts, src=0)
    return parts[0]


def sum_in_place(tensors: Sequence[Tensor], bucket: int = 2**25) -> None:
    """Adds up each tensor over the ranks, `bucket` elements at a time."""
    if world_size() == 1:
        return
    waiting: list[Tensor] = []

    def send() -> None:
        flat = torch.cat([tensor.flatten() for tensor in waiting])
        dist.all_reduce(flat)
        for tensor, part in zip(waiting, flat.split([t.numel() for t in waiting]), strict=True):
            tensor.copy_(part.view_as(tensor))
        waiting.clear()

    for tensor in tensors:
        if waiting and (tensor.dtype != waiting[0].dtype or sum(t.numel() for t in waiting) >= bucket):
            send()
        waiting.append(tensor)
    if waiting:
        send()


def say_once(say: Callable[[], None], patience: float = 0) -> None:
    """Calls `say` on the first rank of the job that comes here; the others wait for it. Alone, calls it.

    Ranks that fail for one reason so tell it once. Those that the launcher gave nothing to agree by all say it.

    Args:
        say: Prints.
        patience: Seconds for which this rank lets another one come first.
    """
    store = _launchers_store()
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if store is not None and patience:
        with contextlib.suppress(RuntimeError):  # nobody else has anything to say
            store.wait([f"egrpo_said_{attempt}"], timedelta(seconds=patience))
    if store is None or store.add(f"egrpo_saying_{attempt}", 1) == 1:
        say()
        if store is not None:
            store.set(f"egrpo_said_{attempt}", "")
        return
    with contextlib.suppress(RuntimeError):  # the launcher ends the others when one ends: not before it is said
        store.wait([f"egrpo_said_{attempt}"], timedelta(seconds=5))


def announce(folder: str) -> None:
    """Lets the other ranks know where the first keeps the files of this run."""
    if launched() > 1 and os.environ["RANK"] == "0" and (store := _launchers_store()) is not None:
        store.set(f"egrpo_folder_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", folder)


def announced() -> str | None:
    """The folder that the first rank has announced; None alone, or where it has not come so far."""
    store = _launchers_store()
    if store is None:
        return None
    key = f"egrpo_folder_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    with contextlib.suppress(RuntimeError):
        store.wait([key], timedelta(seconds=5))
        return store.get(key).decode()
    return None


def _launchers_store() -> Any:
    """torchrun's store, which outlives the ranks; None without one."""
    if launched() < 2 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        return dist.TCPStore(*place, is_master=False, timeout=timedelta(seconds=10))
    except RuntimeError:  # its node has gone
        return None


def is_told_elsewhere(error: BaseException) -> bool:
    """Whether the error says no more than that another rank has gone, which reports its own reason.

    An error that is written for the user, and only followed by the end of the connections, is this rank's own.
    """
    links = chain(error)
    gone = [number for number, link in enumerate(links) if is_peer_gone(link)]
    return launched() > 1 and bool(gone) and not any(isinstance(e, UserError) for e in links[gone[-1] + 1 :])


def chain(error: BaseException) -> list[BaseException]:
    """The error, what it was raised from or while handling, and so on."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


PEER_GONE = (
    *("connection closed by peer", "connection reset by peer", "broken pipe", "socket closed"),
    "recvvalue failed",
)
COLLECTIVES = ("torch", "deepspeed", "lightning")  # packages in which torch's process groups raise


def is_peer_gone(error: BaseException) -> bool:
    """Whether torch's process group raised it because a peer's connection ended.

    By its origin: torch has a class for it, or raises a plain RuntimeError out of its own code. A server that a reward
    asks may say the same words.
    """
    if not any(words in str(error).lower() for words in PEER_GONE):
        return False
    if isinstance(error, dist.DistError):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return type(error) is RuntimeError and module.partition(".")[0] in COLLECTIVES


class Ranks:
    """Decisions that ranks with one divided model must take together, or their collective operations would not pair."""

    def all_done(self, done: bool) -> bool:
        """Whether every rank is done."""
        return self._extreme(int(done), dist.ReduceOp.MIN) > 0

    def most(self, count: int) -> int:
        """The greatest count of any rank."""
        return self._extreme(count, dist.ReduceOp.MAX)

    def _extreme(self, value: int, operation: Any) -> int:
        if world_size() == 1:
            return value
        number = torch.tensor(value)  # on the CPU, so over gloo
        dist.all_reduce(number, operation)
        return int(number)
