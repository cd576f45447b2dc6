"""What all entry points share: compose, run, and end with one clear sentence where something is wrong."""

from __future__ import annotations

import functools
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from egrpo import distributed
from egrpo.launch import LaunchError, in_sweep, is_from_launcher, prepare_rank
from egrpo.paths import config_dir
from egrpo.settings import check_folder, check_settings, check_words, explained

# Errors whose message is written for the user; all others keep their traceback.
EXPECTED = (ValueError, OSError, FloatingPointError, HydraException, OmegaConfBaseException)


class JobError(ValueError):
    """A job of a sweep failed."""


def run(task: Callable[[DictConfig], Any], config_name: str, folder: str = "") -> None:
    """Runs `task` under Hydra with `conf/<config_name>.yaml`; on an expected error prints one sentence and exits 1.

    `folder`, within `conf`, is for a root with a key that is named like a group: Hydra would take its override for one.
    """
    root = f"{folder}/{config_name}".lstrip("/")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us as they are; telling them is our part

    @functools.wraps(task)
    def job(cfg: DictConfig) -> Any:
        _quieten()
        try:
            (_job_folder() / "error.txt").unlink(missing_ok=True)
            check_folder()
            check_settings(cfg, root)
            return task(cfg)
        except Exception as error:
            if not isinstance(error, LaunchError):
                _keep_traceback(error)
            if distributed.launched() > 1:
                end(error)  # before Hydra prints every rank's overrides
            if not in_sweep():
                raise
            failure = _job_error(error)
        print(f"error: {failure}", file=sys.stderr)
        raise failure  # out here it does not hold on to the failed run's model while the sweep goes on

    prepare_rank()
    entry = hydra.main(version_base="1.3", config_path=str(Path(config_dir()) / folder), config_name=config_name)(job)
    try:
        check_words(sys.argv[1:])
        entry()
    except HydraException as error:
        end(explained(error, root))
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise  # Lightning makes one of a KeyboardInterrupt
        distributed.say_once(
            lambda: print("stopped by the user; what was computed is kept", file=sys.stderr, flush=True)
        )
        raise SystemExit(130) from None
    except Exception as error:
        end(error)


def end(error: Exception) -> NoReturn:
    """Ends the process: after one sentence of all ranks where that tells all, else with the error itself."""
    if distributed.is_told_elsewhere(error):
        raise SystemExit(1) from None
    cause = _cause(error)
    if not is_expected(cause):
        raise error
    distributed.say_once(lambda: print(f"error: {_sentence(cause)}", file=sys.stderr, flush=True))
    raise SystemExit(1) from None


def _quieten() -> None:
    """Hides what libraries tell once a run, known and harmless; in every process that runs a job."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
    warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated.*")
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # metrics are the same on all ranks
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # torchrun starts our processes
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # tells of every font that a PDF embeds


def is_expected(error: BaseException) -> bool:
    """Whether the error's message alone tells the user what is wrong."""
    from egrpo.rewards import RewardError
    from egrpo.training import TrainingError

    return isinstance(error, (*EXPECTED, RewardError, TrainingError)) or is_from_launcher(error)


def _cause(error: BaseException) -> BaseException:
    """The user's error inside Hydra's wrapping, which stays where only it says which setting has the wrong type."""
    cause = error
    while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
        cause = cause.__cause__
    return error if isinstance(cause, TypeError) else cause


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    return str(error).strip()


def _job_error(error: Exception) -> JobError:
    """What a failed job of a sweep hands back: a sentence, which any launcher can carry to the sweep's own process."""
    cause = _cause(error)
    told = _sentence(cause)
    if not is_expected(cause):
        told = f"{type(cause).__name__}: {told} (traceback in {_job_folder() / 'error.txt'})"
    return JobError(f"job {HydraConfig.get().job.num} of the sweep, {_job_folder()}: {told}")


def _job_folder() -> Path:
    """The folder of the present job; only within Hydra's job is it known."""
    return Path(HydraConfig.get().runtime.output_dir)


def _keep_traceback(error: BaseException) -> None:
    """Writes the whole traceback into the job's folder."""
    folder = _job_folder()
    if folder.is_dir():
        (folder / "error.txt").write_text("".join(traceback.format_exception(error)))


def overrides() -> list[str]:
    """Those of the command line."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def composition() -> dict[str, Any]:
    """How the present run was put together: its overrides, and the choice of every group; empty outside Hydra."""
    if not HydraConfig.initialized():
        return {}
    return {"overrides": overrides(), "choices": dict(HydraConfig.get().runtime.choices)}


def save_config(cfg: DictConfig, folder: Path) -> None:
    """Leaves the resolved configuration in the run's folder as `config.yaml`; another older one is kept beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    content, path = OmegaConf.to_yaml(cfg, resolve=True), folder / "config.yaml"
    if path.exists() and path.read_text() == content:
        return
    if path.exists():
        number = 1 + len(list(folder.glob("config.previous_*.yaml")))
        path.replace(folder / f"config.previous_{number}.yaml")
    path.write_text(content)
