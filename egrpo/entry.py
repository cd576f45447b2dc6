"""What all entry points share: compose, run, and end with one clear sentence where something is wrong.

Exit codes: 0 done, 1 a reported error, 130 Ctrl-C, 143 SIGTERM (docs/exit_codes.md).
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from egrpo import distributed
from egrpo.base import stopping
from egrpo.base.errors import ConsequenceError, FolderTakenError, UserError
from egrpo.base.files import REMEDIES, cannot_write, write_whole
from egrpo.base.stopping import Stopped
from egrpo.launch import SILENT, LaunchError, in_sweep, is_from_launcher, prepare_rank
from egrpo.paths import config_dir
from egrpo.settings import check_folder, check_settings, check_words, explained, explained_key, explained_part

# Errors whose message is written for the user; all others keep their traceback. An OSError that names a file is one.
EXPECTED = (UserError, HydraException, OmegaConfBaseException)

Resume = Callable[[Path], str]  # the folder of a job that was stopped -> how its user resumes it


class JobError(UserError):
    """A job of a sweep failed."""


def run_again(folder: Path) -> str:
    """Of commands that keep nothing half done."""
    return "nothing is left half done; run the same command again"


def resume_in_folder(folder: Path) -> str:
    """Of commands that resume in their own folder."""
    return f"what was finished is kept; the same command with hydra.run.dir={folder} resumes"


def run(task: Callable[[DictConfig], Any], config_name: str, folder: str = "", resume: Resume = run_again) -> None:
    """Runs `task` under Hydra with `conf/<config_name>.yaml`; on an expected error prints one sentence and exits 1.

    Args:
        task: The command.
        config_name: Of its root.
        folder: Within `conf`, for a root with a key that is named like a group: Hydra would take its override for one.
        resume: What is said of a run that Ctrl-C (exit code 130) or SIGTERM (143) stopped.
    """
    root = f"{folder}/{config_name}".lstrip("/")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us as they are; telling them is our part
    sweeper = os.getpid()

    @functools.wraps(task)
    def job(cfg: DictConfig) -> Any:
        _quieten()
        if os.getppid() == sweeper:  # a worker of a sweep has no purpose without the sweep
            stopping.end_with(sweeper)
        folder = _job_folder()
        before = _read_error(folder)
        distributed.announce(str(folder))
        try:
            with stopping.heeded():
                (folder / ERROR).unlink(missing_ok=True)
                check_folder()
                check_settings(cfg, root)
                return task(cfg)
        except (Exception, KeyboardInterrupt, SystemExit) as caught:
            error = _named(caught)
        if isinstance(error, Stopped) and os.getpid() == sweeper:
            _end_stopped(error, resume(folder) + (_other_jobs() if in_sweep() else ""))
        if before is not None and isinstance(_cause(error), FolderTakenError):
            (folder / ERROR).write_bytes(before)
        if not in_sweep():
            end(error, folder)
        failure = _job_error(error, folder, resume)
        del error  # with its frames it would hold on to the failed run's model while the sweep runs its other jobs
        print(f"error: {failure}", file=sys.stderr)
        raise failure

    prepare_rank()
    entry = hydra.main(version_base="1.3", config_path=str(Path(config_dir()) / folder), config_name=config_name)(job)
    try:
        with stopping.heeded(), redirect_stderr(_WithoutOverrides(sys.stderr)):  # type: ignore[type-var]
            stopping.end_with_parent()
            check_words(sys.argv[1:], Path(root).parent.as_posix())
            entry()
    except Stopped as stop:
        _end_stopped(stop, AROUND_JOBS)
    except KeyboardInterrupt:
        _end_stopped(Stopped(2), AROUND_JOBS)
    except HydraException as error:
        end(explained(error, root), None)
    except Exception as error:
        end(error, None)


ERROR = "error.txt"  # the traceback of what ended a job, in its folder
AROUND_JOBS = (
    "what was finished is kept; the same command resumes in the same folder (hydra.run.dir=FOLDER; of a sweep "
    "go_on=true hydra.sweep.dir=FOLDER)"
)


def end(error: BaseException, folder: Path | None) -> NoReturn:
    """Ends the process with status 1, after one sentence of all ranks where that says all, else with a traceback too.

    Args:
        error: What ended the job, or what came before or after it.
        folder: Of the job, where the traceback is kept.
    """
    if distributed.is_told_elsewhere(error):
        raise SystemExit(1) from None
    distributed.say_once(
        lambda: _tell(error, folder), patience=CONSEQUENCE if isinstance(_cause(error), ConsequenceError) else 0
    )
    raise SystemExit(1) from None


CONSEQUENCE = 10.0  # seconds for which an error that follows from another rank's waits for that one to be told


def _tell(error: BaseException, folder: Path | None) -> None:
    cause = _cause(error)
    announced = distributed.announced()  # of several ranks only the first keeps files
    kept = _keep_traceback(error, cause, Path(announced) if announced else folder)
    where = f" (traceback in {kept})" if kept else ""
    sentence = _sentence(cause, folder)
    if not is_expected(cause):
        traceback.print_exception(error)
        sentence = f"{type(cause).__name__}: {sentence}"
    print(f"error: {sentence}{where}", file=sys.stderr, flush=True)


def _end_stopped(stop: Stopped, resume: str) -> NoReturn:
    """Ends the process with the status of its signal; of several ranks the launcher says so."""

    def tell() -> None:
        print(f"stopped by {stopping.name_of(stop.number)}: {resume}", file=sys.stderr, flush=True)

    if not os.environ.get(SILENT):
        distributed.say_once(tell)
    raise SystemExit(stop.code) from None


def _other_jobs() -> str:
    folder = HydraConfig.get().sweep.dir
    return f"; other jobs of the sweep were not started: go_on=true hydra.sweep.dir={folder} runs what is missing"


def _named(caught: BaseException) -> BaseException:
    """What ended a job: `Stopped` where a signal did, else an error; a SystemExit is one, whatever its code."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    if isinstance(caught, KeyboardInterrupt) or isinstance(caught.__context__, KeyboardInterrupt):
        return Stopped(2)  # Lightning makes a SystemExit of a KeyboardInterrupt
    if isinstance(caught, SIGTERMException):
        return Stopped(15)
    if not isinstance(caught, SystemExit) or isinstance(caught, Stopped):
        return caught
    frame = traceback.extract_tb(caught.__traceback__)[-1]
    error = UserError(
        f"{frame.name} in {frame.filename}, line {frame.lineno}, called sys.exit({caught.code!r}), which ended the run "
        "before it was done; let it raise an exception, or return"
    )
    error.__cause__ = caught
    return error


class _WithoutOverrides:
    """A stream without Hydra's line of a failed job's overrides, which would precede the sentence."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if text.startswith("Error executing job with overrides") else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


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
    if isinstance(error, OSError) and error.errno is not None:
        return error.filename is not None or error.errno in REMEDIES
    return isinstance(error, EXPECTED) or is_from_launcher(error)


def _cause(error: BaseException) -> BaseException:
    """The user's error inside Hydra's wrapping, which stays where only it says which setting has the wrong type; and
    the one that came before the connections of other ranks ended."""
    links = distributed.chain(error)
    gone = [number for number, link in enumerate(links) if distributed.is_peer_gone(link)]
    cause = error = next((e for e in links[gone[-1] :] if isinstance(e, UserError)), error) if gone else error
    while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
        cause = explained_part(cause)
    return error if isinstance(cause, TypeError) else cause


def _sentence(error: BaseException, folder: Path | None) -> str:
    if isinstance(error, OSError) and error.errno in REMEDIES and not isinstance(error, UserError):
        return str(cannot_write(error, folder))
    if isinstance(error, FileExistsError) and error.filename:
        return f"{error.filename} is a file: name a folder in its place"
    if isinstance(error, OSError) and error.filename:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, OmegaConfBaseException):
        return explained_key(error)
    return str(error).strip()


def _job_error(error: BaseException, folder: Path, resume: Resume) -> JobError:
    """What a failed job of a sweep hands back: a sentence, which any launcher can carry to the sweep's own process."""
    cause = _cause(error)
    if isinstance(error, Stopped):
        return JobError(f"{_job_name(folder)}: {error}: {resume(folder)}")
    kept = None if isinstance(error, LaunchError) else _keep_traceback(error, cause, folder)
    told = _sentence(cause, folder) if is_expected(cause) else f"{type(cause).__name__}: {_sentence(cause, folder)}"
    return JobError(f"{_job_name(folder)}: {told}{f' (traceback in {kept})' if kept else ''}")


def _job_name(folder: Path) -> str:
    return f"job {HydraConfig.get().job.num} of the sweep, {folder}"


def _job_folder() -> Path:
    """The folder of the present job; only within Hydra's job is it known."""
    return Path(HydraConfig.get().runtime.output_dir)


def _read_error(folder: Path) -> bytes | None:
    """What an earlier run in the folder left as its error."""
    try:
        return (folder / ERROR).read_bytes()
    except OSError:
        return None


def _keep_traceback(error: BaseException, cause: BaseException, folder: Path | None) -> Path | None:
    """Writes the whole traceback into the job's folder; gives the file, None where it cannot or must not be written."""
    if folder is None or isinstance(cause, FolderTakenError):
        return None
    try:
        (folder / ERROR).write_text("".join(traceback.format_exception(error)))
    except OSError:  # a full disk, too, is told on the terminal
        return None
    return folder / ERROR


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
    content, path = OmegaConf.to_yaml(cfg, resolve=True), folder / "config.yaml"
    if path.exists() and path.read_text() == content:
        return
    if path.exists():
        number = 1 + len(list(folder.glob("config.previous_*.yaml")))
        path.replace(folder / f"config.previous_{number}.yaml")
    write_whole(path, content.encode())
