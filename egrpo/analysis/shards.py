"""A study's drawing over several processes, each with its share of the units."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from hydra.errors import InstantiationException
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from egrpo.analysis.drawing import draw_unit, load_scorers
from egrpo.analysis.records import is_done
from egrpo.analysis.storage import claim_model
from egrpo.analysis.work import Unit, Work
from egrpo.base.errors import UserError
from egrpo.policies import load_policy, model_hash
from egrpo.rewards.checking import check_prompts
from egrpo.rewards.placement import pick_device

POLL = 1.0  # seconds between looks at whether a silent process still lives


class ShardError(UserError):
    """A process ended without a word."""


def number_of_processes(processes: int | None, device: str) -> int:
    """As asked for; None = one a GPU, and one on a CPU.

    Raises:
        UserError: less than 1.
    """
    if processes is None:
        return max(1, torch.cuda.device_count()) if device == "auto" else 1
    if processes < 1:
        raise UserError(f"processes={processes}: give at least 1, or null for one a GPU")
    return processes


def draw_all(work: Work, processes: int) -> None:
    """Draws every unit that is not done, with a bar that counts images."""
    missing = [unit for unit in work.units if not is_done(work, unit)]
    total = sum(work.images(unit) for unit in work.units)
    if not missing:
        return
    done = total - sum(work.images(unit) for unit in missing)
    # Neighbours go to different processes: all of them draw in the same setting at about the same time.
    shares = [missing[shard::processes] for shard in range(min(processes, len(missing)))]
    with tqdm(total=total, initial=done, unit="images", desc="drawing", smoothing=0.05) as bar:
        if len(shares) == 1:
            draw_share(work, shares[0], bar.update)
        else:
            _draw_in_processes(work, shares, bar)


def draw_share(work: Work, units: Sequence[Unit], tell: Callable[[int], Any]) -> None:
    """Draws units, a setting after another; `tell` gets the number of images of each as soon as it is stored."""
    torch.set_num_threads(work.threads)
    transformers_logging.disable_progress_bar()  # it would write across the study's own
    device = pick_device(work.device)
    scorers = load_scorers(work.ensemble, work.judges)
    check_prompts(scorers.rewards, scorers.judges, work.prompts, work.prompts)
    for name, setting in work.settings.items():
        own = [unit for unit in units if unit.setting == name]
        if not own:
            continue
        policy = load_policy(setting.model, setting.ckpt_path)
        claim_model(work.folder, name, model_hash(policy))
        policy.to(device)
        for unit in own:
            tell(draw_unit(policy, scorers, work, unit))


def _draw_in_processes(work: Work, shares: list[list[Unit]], bar: tqdm) -> None:
    context = multiprocessing.get_context("spawn")  # a fork would share locks of threads, and CUDA refuses it
    news: Any = context.Queue()
    workers = [
        context.Process(target=_worker, args=(work, share, number, os.getpid(), news), name=f"shard {number}")
        for number, share in enumerate(shares)
    ]
    try:
        for worker in workers:
            worker.start()
        _follow(workers, news, bar)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
        for worker in workers:
            if worker.pid is not None:
                worker.join()


def _follow(workers: list[Any], news: Any, bar: tqdm) -> None:
    """Counts what is drawn until all workers are through; raises the first error among them."""
    running = {worker.name for worker in workers}
    while running:
        try:
            sender, kind, value = news.get(timeout=POLL)
        except queue.Empty:
            for worker in workers:
                if worker.name in running and worker.exitcode is not None and news.empty():
                    raise ShardError(
                        f"{worker.name} of the study ended with exit code {worker.exitcode} and without a word (a "
                        "negative one is a signal; -9 is often want of memory): what was finished is kept, so start "
                        "again, with fewer processes= if memory is short"
                    ) from None
            continue
        if kind == "error":
            raise value
        if kind == "through":
            running.discard(sender)
        else:
            bar.update(value)


def _worker(work: Work, units: list[Unit], number: int, parent: int, news: Any) -> None:
    """The body of a process: draws its share and tells of it; ends where its parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told too, and ends this process
    os.environ["LOCAL_RANK"] = str(number)  # where rewards look for their GPU
    name = f"shard {number}"

    def tell(images: int) -> None:
        news.put((name, "drawn", images))
        if os.getppid() != parent:
            raise SystemExit(1)

    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(number % torch.cuda.device_count())
            os.environ["LOCAL_RANK"] = str(number % torch.cuda.device_count())
        draw_share(work, units, tell)
        news.put((name, "through", 0))
    except Exception as error:
        news.put((name, "error", _portable(error)))


def _portable(error: BaseException) -> BaseException:
    """The error, out of Hydra's wrapping, as it survives the way to another process; its traceback is a note on it."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    told = "".join(traceback.format_exception(error))
    error.add_note(told)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class does not survive
        return RuntimeError(told)
    return error
