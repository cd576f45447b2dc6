"""`python -m egrpo.download what=rewards`: published checkpoints, fetched, checked, converted and put in place.

`what` is a choice of the group conf/what: all, rewards, one reward (hps, git, gdino, orm), janus_pro_1b, janus_pro_7b.
A token, where one is needed, comes from HF_TOKEN or `hf auth login`, as huggingface_hub does it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from egrpo.downloads import DownloadError, by_hand, check_space, describe, obtain
from egrpo.downloads.hub import UnreachableError
from egrpo.entry import run


def download(cfg: DictConfig) -> None:
    """Prints what there is to do with sizes and licences, and does it; what is finished is left as it is."""
    target = Path(cfg.target).expanduser()
    artifacts = [instantiate(node.artifact, _convert_="object") for node in cfg.what.values()]
    print(describe(artifacts, target, cfg.keep_originals), flush=True)
    if cfg.dry_run:
        return
    check_space(artifacts, target, cfg.keep_originals)
    try:
        for artifact, node in zip(artifacts, cfg.what.values()):
            convert = partial(instantiate, node.convert) if node.convert else None
            new = obtain(artifact, target, convert, cfg.keep_originals)
            print(f"{artifact.final(target)}: {'done' if new else 'is there'}", flush=True)
    except UnreachableError as error:
        raise DownloadError(by_hand(artifacts, target, error)) from error
    print(target)


if __name__ == "__main__":
    run(download, "download")
