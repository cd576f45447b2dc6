"""Fetching published checkpoints, with the Hub's own client and a small server that speaks enough of its protocol."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from egrpo.download import download
from egrpo.downloads import Artifact, DownloadError, Source, obtain
from egrpo.downloads.artifacts import lacking
from egrpo.entry import run
from tests.conf.helpers import CONF, choices_of, composed
from tests.fake_hub import Hub, point_at, serving


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    hub = Hub()
    with serving(hub) as port:
        point_at(monkeypatch, port)
        yield hub


TOY = {"config.json": b"{}", "model.safetensors": b"weights" * 100, "notes.md": b"not wanted"}


def toy(**changes: Any) -> Artifact:
    """A model of two files, published in transformers' format unless `kind` says otherwise."""
    weights = {"path": "model.safetensors", "size": 700, "sha256": hashlib.sha256(TOY["model.safetensors"]).hexdigest()}
    source = Source(
        "lab/toy", "main", "MIT", [{"path": "config.json", "size": 2}, {**weights, **changes.pop("weights", {})}]
    )
    return Artifact("a toy", "rewards/toy", [source], **changes)


def copying(source: Path, target: Path) -> str:
    """A converter that a stopped process may leave half done."""
    target.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(source / name, target / name)
    return "toy: converted"


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_what_is_published_as_it_is_used_lands_in_its_folder_and_is_fetched_once(hub, tmp_path):
    hub.repos["lab/toy"] = TOY
    assert obtain(toy(), tmp_path, None, False)
    assert files(tmp_path) == ["rewards/toy/config.json", "rewards/toy/model.safetensors"]
    asked = hub.asked
    assert not obtain(toy(), tmp_path, None, False)
    assert hub.asked == asked


@pytest.mark.parametrize("keep", [False, True])
def test_what_is_converted_appears_whole_or_not_at_all(hub, tmp_path, capsys, keep: bool):
    hub.repos["lab/toy"] = TOY
    final = tmp_path / "rewards" / "toy"

    def stopped(source: Path, target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain(toy(kind="toy"), tmp_path, lambda: stopped, keep)
    assert not final.exists()
    assert obtain(toy(kind="toy"), tmp_path, lambda: copying, keep)
    assert hub.fetched == ["config.json", "model.safetensors"]  # not again after the stop
    assert files(final) == ["config.json", "model.safetensors"]
    assert capsys.readouterr().out == "toy: converted\n"
    assert sorted(p.name for p in final.parent.iterdir()) == (["toy", "toy.original"] if keep else ["toy"])


def test_a_run_that_breaks_off_goes_on_where_it_was(hub, tmp_path):
    hub.repos["lab/toy"] = TOY
    hub.refused["model.safetensors"] = (403, {})  # 5xx would be tried again, slowly
    with pytest.raises(DownloadError, match=r"answered 403 for model\.safetensors of lab/toy"):
        obtain(toy(), tmp_path, None, False)
    hub.refused.clear()
    assert obtain(toy(), tmp_path, None, False)
    assert hub.fetched == ["config.json", "model.safetensors"]


def test_another_file_than_the_pinned_one_is_refused_before_it_is_fetched(hub, tmp_path):
    hub.repos["lab/toy"] = TOY
    with pytest.raises(DownloadError, match=rf"publishes model\.safetensors with SHA-256 \w+, but .* pins {'0' * 64}"):
        obtain(toy(weights={"sha256": "0" * 64}), tmp_path, None, False)
    assert hub.fetched == []


@pytest.mark.parametrize("pinned", [True, False])
def test_a_file_that_arrives_wrong_is_removed_and_named(hub, tmp_path, pinned: bool):
    hub.repos["lab/toy"] = TOY
    hub.spoiled["model.safetensors"] = b"warnings"[:7] * 100
    artifact = toy() if pinned else toy(weights={"sha256": None})
    with pytest.raises(DownloadError, match=r"^model\.safetensors of lab/toy has SHA-256 \w{64}, expected is \w{64}"):
        obtain(artifact, tmp_path, None, False)
    assert not list(tmp_path.rglob("model.safetensors"))
    hub.spoiled.clear()
    assert obtain(artifact, tmp_path, None, False)


@pytest.mark.parametrize(
    "refused, words",
    [
        ({"lab/toy": (403, {"X-Error-Code": "GatedRepo"})}, "only given to accounts that accepted its terms.*HF_TOKEN"),
        ({"lab/toy": (401, {"X-Error-Code": "RepoNotFound"})}, "has no lab/toy at revision main, or not for you"),
        ({"lab/toy": (404, {"X-Error-Code": "RevisionNotFound"})}, "has no lab/toy at revision main"),
        ({"lab/toy": (400, {})}, "answered 400 for lab/toy"),
    ],
)
def test_refusals_are_told_in_a_sentence(hub, tmp_path, refused, words: str):
    hub.repos["lab/toy"] = TOY
    hub.refused.update(refused)
    with pytest.raises(DownloadError, match=words) as caught:
        obtain(toy(), tmp_path, None, False)
    assert "\n" not in str(caught.value)


def test_a_repository_without_the_file(hub, tmp_path):
    hub.repos["lab/toy"] = {"config.json": b"{}", "old/model.safetensors": b""}
    with pytest.raises(DownloadError, match=r"has no file model\.safetensors \(it has config\.json, old/model"):
        obtain(toy(), tmp_path, None, False)


def test_an_unfinished_folder_is_not_overwritten(hub, tmp_path):
    hub.repos["lab/toy"] = TOY
    folder = tmp_path / "rewards" / "toy"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("my own")
    with pytest.raises(DownloadError, match=r"rewards/toy is there but lacks model\.safetensors"):
        obtain(toy(), tmp_path, None, False)
    assert hub.asked == 0 and files(tmp_path) == ["rewards/toy/config.json"]


def test_patterns_take_all_shards_and_no_subfolders(hub, tmp_path):
    shards = {f"model-{i}.safetensors": bytes([i]) * 10 for i in (1, 2, 3)}
    index = {"weight_map": {f"w{i}": name for i, name in enumerate(shards)}}
    other = {"step_1/optimizer.safetensors": b"", "run.sh": b""}
    listed = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode(), **shards, **other}
    hub.repos["lab/big"] = listed
    wanted = [{"path": "*.json"}, {"path": "*.safetensors"}, {"path": "*.jinja", "optional": True}]
    assert obtain(Artifact("big", "big", [Source("lab/big", "main", "MIT", wanted)]), tmp_path, None, False)
    assert files(tmp_path / "big") == sorted(set(listed) - set(other))
    (tmp_path / "big" / "model-2.safetensors").unlink()
    assert lacking(tmp_path / "big") == ["model-2.safetensors"]


OFFICIAL = {
    "hps": {"xswu/HPSv2": ["HPS_v2.1_compressed.pt"], "openai/clip-vit-large-patch14": ["vocab.json", "merges.txt"]},
    "gdino": {"ShilongLiu/GroundingDINO": ["groundingdino_swint_ogc.pth"], "google-bert/bert-base-uncased": None},
    "orm": {"CaraJ/ORM-T2I-R1": None},
}
# What tells the dimensions of a tiny checkpoint; the official ones have none beside them.
DIMENSIONS = {"hps": ["open_clip_config.json"], "gdino": ["config.json"], "orm": []}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_formats_are_fetched_and_converted(hub, shared, tmp_path, name: str, capsys):
    tiny = shared / "conformance" / f"{name}_tiny"
    cfg = composed("download", f"what={name}", f"target={tmp_path}")
    OmegaConf.set_struct(cfg, False)
    for source in cfg.what[name].artifact.sources:
        folder = tiny / source.get("folder", ".")
        names = OFFICIAL[name][source.repo] or [p.name for p in folder.iterdir() if p.is_file()]
        names = [n for n in names if n not in ("expected.safetensors", "margins.json")]
        hub.repos[source.repo] = {n: (folder / n).read_bytes() for n in names}
        for file in source.files:
            file.sha256 = None  # those pinned belong to the real files
    first = cfg.what[name].artifact.sources[0]
    for file in DIMENSIONS[name]:
        hub.repos[first.repo][file] = (tiny / file).read_bytes()
        first.files.append({"path": file})
    download(cfg)
    final = tmp_path / "rewards" / name
    assert not lacking(final) and [p.name for p in final.parent.iterdir()] == [name]
    out = capsys.readouterr().out
    assert f"{name}: " in out and "parameters" in out and out.splitlines()[-1] == str(tmp_path)
    fetched = len(hub.fetched)
    download(cfg)
    assert len(hub.fetched) == fetched and f"{final}: is there" in capsys.readouterr().out


# The command.


@pytest.fixture
def command(monkeypatch, capfd, tmp_path) -> Iterator[Callable[..., tuple[str, str]]]:
    """Runs `python -m egrpo.download` in this process; returns its output and, but for a dry run, its error."""

    def call(*overrides: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["download", f"hydra.run.dir={tmp_path / 'run'}", *overrides])
        if "dry_run=true" in overrides:
            run(download, "download")
            return capfd.readouterr().out, ""
        with pytest.raises(SystemExit) as stop:
            run(download, "download")
        captured = capfd.readouterr()
        assert stop.value.code == 1 and "Traceback" not in captured.err
        return captured.out, captured.err[captured.err.index("error: ") :]

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    handlers, level = logging.root.handlers[:], logging.root.level
    yield call
    logging.root.handlers[:], logging.root.level = handlers, level


def test_a_dry_run_tells_sizes_and_licences_and_fetches_nothing(hub, command, tmp_path):
    out, error = command("what=all", "dry_run=true", f"target={tmp_path / 'models'}")
    assert not error and hub.asked == 0 and not (tmp_path / "models").exists()
    for words in (
        f"{tmp_path}/models/rewards/hps: HPS v2.1 reward: 1.97 GB to fetch, then to convert (kind=hps)",
        f"{tmp_path}/models/rewards/git: GIT-large VQAv2 reward: 1.58 GB to fetch\n",
        "ShilongLiu/GroundingDINO at a94c9b567a2a374598f05c584e96798a170c56fb: groundingdino_swint_ogc.pth",
        "licence: CC-BY-NC-4.0 (no commercial use)",
        f"{tmp_path}/models/janus_pro_7b: Janus-Pro-7B: about 14.85 GB to fetch\n",
    ):
        assert words in out
    assert re.search(r"total: about 39\.36 GB to fetch; takes up to 55\.44 GB of disk, [\d.]+ .?B are free in", out)


@pytest.mark.parametrize("offline", ["by setting", "no connection"])
def test_without_a_connection_it_says_what_to_bring_where(command, tmp_path, monkeypatch, offline: str):
    point_at(monkeypatch, 9)  # the port of the discard service, where nothing listens
    if offline == "by setting":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    finished = tmp_path / "rewards" / "gdino"
    finished.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (finished / name).touch()
    _, error = command("what=rewards", f"target={tmp_path}")
    reason = "HF_HUB_OFFLINE is set" if offline == "by setting" else "http://127.0.0.1:9 does not answer"
    assert error.startswith(f"error: {reason}") and "to be brought by hand" in error
    folder = f"{tmp_path}/rewards"
    for words in (
        "HPS_v2.1_compressed.pt of xswu/HPSv2 (revision 697403c78157020a1ae59d23f111aa58ced35b0a) "
        f"into {folder}/hps.original\n",
        f"vocab.json, merges.txt of openai/clip-vit-large-patch14 (revision main) into {folder}/hps.original\n",
        f"then python -m egrpo.convert kind=hps source={folder}/hps.original target={folder}/hps\n",
        f"microsoft/git-large-vqav2 (revision main) into {folder}/git\n",
        f"then python -m egrpo.convert kind=orm source={folder}/orm.original target={folder}/orm",
    ):
        assert words in error
    assert "GroundingDINO" not in error


def test_a_disk_too_small_is_told_before_anything_is_fetched(hub, command, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 2 * 10**9))
    _, error = command("what=hps", f"target={tmp_path / 'models'}")
    assert "has 2.00 GB free, but 3.95 GB are needed" in error and hub.asked == 0


def test_a_wrong_name_lists_the_right_ones(command):
    assert (
        "what=janus: there is no such choice; did you mean janus_pro" in command("what=janus")[1]
        and "rewards" in command()[1]
    )


# The tables.


def tables() -> dict[str, DictConfig]:
    return dict(composed("download", "what=all").what.items())


def test_the_tables_are_sound():
    for name, node in tables().items():
        artifact = instantiate(node.artifact, _convert_="object")
        assert Path(artifact.folder).name == name
        assert (artifact.kind is None) == (node.convert is None)
        if artifact.kind:
            assert node.convert == OmegaConf.load(CONF / "kind" / f"{artifact.kind}.yaml")
        for source in artifact.sources:
            assert source.licence and re.fullmatch(r"main|[0-9a-f]{40}", source.revision)
            assert all(re.fullmatch(r"[0-9a-f]{64}", file.sha256 or "0" * 64) for file in source.files)


def test_every_choice_is_a_table_or_a_collection_of_tables():
    assert set(choices_of("what")) == {*tables(), "rewards", "all"}
    assert set(composed("download", "what=rewards").what) == {"hps", "git", "gdino", "orm"}
