"""How a run is started again as torchrun, what a sweep refuses, and what it asks of SLURM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import submitit
from hydra import compose, initialize_config_dir
from hydra.conf import ConfigSourceInfo
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.utils import instantiate
from joblib.externals.loky.process_executor import TerminatedWorkerError
from omegaconf import DictConfig, open_dict
from submitit.core.utils import FailedSubmissionError, UncompletedJobError

from egrpo import distributed
from egrpo.entry import is_expected
from egrpo.launch import LaunchError, _run, last_of_restart, launch, words_of_run
from egrpo.paths import config_dir
from tests.conf.helpers import choices_of

Job = Callable[..., DictConfig]
SWEEP = "hydra.mode=MULTIRUN"
LAUNCHERS = ["basic", "joblib", "submitit_local", "submitit_slurm", *choices_of("hydra/launcher")]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """Composes the configuration of a job, as Hydra has it when the job begins."""
    state = Singleton.get_state()

    def make(*overrides: str) -> DictConfig:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            cfg = compose("train", [f"run_dir={tmp_path}", *overrides], return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.config_sources = [
                ConfigSourceInfo("hydra.conf", "pkg", "hydra"),
                ConfigSourceInfo(config_dir(), "file", "main"),
                ConfigSourceInfo("/my/conf", "file", "command-line"),
            ]
            cfg.hydra.runtime.output_dir = str(tmp_path)
            cfg.hydra.job.num, cfg.hydra.job.id = 0, "0"
        HydraConfig.instance().set_config(cfg)
        return cfg

    yield make
    Singleton.set_state(state)


def test_a_run_is_composed_again_alone_whatever_the_command_line_says(job):
    job("seed=3", "+experiment=shapes_grpo", SWEEP, "hydra/launcher=joblib", "hydra.run.dir=elsewhere")
    words = words_of_run("/runs/lr=1,it's/0")
    assert words[:3] == [f"--config-path={config_dir()}", "--config-dir=/my/conf", "--config-name=train"]
    assert words[-2:] == ["hydra.run.dir='/runs/lr=1,it\\'s/0'", "hydra.mode=RUN"]
    assert words.index("seed=3") < words.index("+experiment=shapes_grpo") and SWEEP not in words
    assert sum(word.startswith("hydra.run.dir=") for word in words) == 1


@pytest.mark.parametrize(
    "overrides, told",
    [
        (["hydra/launcher=slurm", "hydra.launcher.tasks_per_node=8"], "train the same run 8 times"),
        (["hydra/launcher=slurm", "hydra.launcher.nodes=2"], "train the same run 2 times"),
        (["hydra/launcher=slurm", "trainer.devices=8"], r"trainer.devices=8, but .*gpus_per_node=1"),
        (["trainer.num_nodes=2"], "start the run on every node"),
    ],
)
def test_what_a_sweep_cannot_start_is_told(job, overrides: list[str], told: str):
    with pytest.raises(ValueError, match=told):
        launch(job(SWEEP, *overrides))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_job_on_one_device_runs_in_its_own_process(job, launcher: str):
    assert launch(job(SWEEP, f"hydra/launcher={launcher}")) is False


def test_a_sweep_is_not_started_by_torchrun(job, monkeypatch):
    cfg = job(SWEEP)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="start it without torchrun"):
        launch(cfg)


@pytest.mark.parametrize(
    "said, told",
    [("noise\nerror: rank 1 has had enough\nerror: the end", "^rank 1 has had enough$"), ("noise", "with status 3;")],
)
def test_a_failed_run_of_a_job_hands_up_its_first_error(capfd, said: str, told: str):
    with pytest.raises(LaunchError, match=told):
        _run(["bash", "-c", 'echo "$0" >&2; exit 3', said], {"PATH": "/usr/bin:/bin"})
    assert capfd.readouterr().err == said + "\n"


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_restart_goes_on_from_the_last_checkpoint_and_a_start_does_not(tmp_path, monkeypatch, name: str):
    monkeypatch.setenv(name, "1")
    assert last_of_restart(tmp_path) is None
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    assert last_of_restart(tmp_path) == str(last)
    monkeypatch.setenv(name, "0")
    assert last_of_restart(tmp_path) is None


def test_a_restart_that_only_another_node_counts_is_one(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    monkeypatch.setattr(distributed, "gather", lambda own: [own, True])
    assert last_of_restart(tmp_path) is not None


def test_restarts_over_several_nodes_that_would_hang_are_refused(monkeypatch):
    started = {"RANK": "0", "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in {**started, "TORCHELASTIC_MAX_RESTARTS": "3"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        distributed.connect()


def test_what_slurm_is_asked_for(job, tmp_path, monkeypatch):
    """The plugin's own way from the yaml to the script for sbatch, up to its submission."""
    more = ("hydra/launcher=slurm", "hydra.launcher.gpus_per_node=8", "hydra.launcher.partition=big")
    cfg = job(SWEEP, *more, f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=0")
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    made: list[Any] = []
    monkeypatch.setattr(submitit.AutoExecutor, "map_array", lambda self, *jobs: made.append(self) or [])
    launcher = instantiate(cfg.hydra.launcher)
    launcher.setup(hydra_context=None, task_function=lambda cfg: None, config=cfg)
    assert launcher.launch([["seed=0"], ["seed=1"]], 0) == []
    lines = made[0]._executor._make_submission_file_text("true", "uid").splitlines()
    asked = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH --")}
    assert {"nodes=1", "ntasks-per-node=1", "gpus-per-node=8", "cpus-per-task=8", "mem=64GB", "time=1440"} <= asked
    assert {"partition=big", "requeue", "signal=USR2@120", "job-name=train"} <= asked
    assert made[0]._executor.max_num_timeout == 3 and made[0]._executor.parameters["array_parallelism"] == 8
    assert str(made[0]._executor.folder) == f"{tmp_path}/.submitit/%j"


@pytest.mark.parametrize(
    "error, is_launchers",
    [
        (TerminatedWorkerError("a worker was killed"), True),
        (UncompletedJobError("the job left nothing"), True),
        (FailedSubmissionError("sbatch: error: invalid partition"), True),
        (RuntimeError("a bug"), False),
    ],
)
def test_a_launchers_own_errors_are_told_without_a_traceback(error: Exception, is_launchers: bool):
    assert is_expected(error) is is_launchers


def test_a_missing_cluster_is_told_without_a_traceback(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError) as raised:
        submitit.AutoExecutor(tmp_path, cluster="slurm")
    assert is_expected(raised.value)
