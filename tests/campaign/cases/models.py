"""Plans, conversions, downloads and exports: what is not what it says, and targets that hold other things."""

from __future__ import annotations

from typing import Any

import torch

from tests.campaign.case import Case, refused
from tests.campaign.files import HTML, POINTER, Bomb, checkpoint, config, run_folder

KINDS = ("hps", "gdino", "orm", "janus", "janus_original")


def sources(name: str, content: Any, *says: str) -> list[Case]:
    """A file as the source of every kind of conversion that reads one."""
    return [
        Case("convert", (f"kind={kind}", f"source={name}", "target=out"), says, files={name: content})
        for kind in ("hps", "gdino")
    ]


def saved(value: Any) -> Any:
    """A file that torch wrote."""
    return lambda path: torch.save(value, path)


CASES = [
    *refused(
        "convert",
        ("source=x  target=y", "kind", "(?i)available options|choose|hps"),
        ("kind=hps  target=y", "source is not set", "source=VALUE"),
        ("kind=clip  source=x  target=y", "clip", "choose from|did you mean"),
        ("kind=hps  source=  target=y", "source= is empty", "name the file or folder"),
        ("kind=hps  source=x.pt  target=", "target= is empty", "name the file or folder"),
        ("kind=hps  source=x.pt  target=mine", "target=mine", "name an empty or new folder|new folder"),
        ("kind=hps  source=x.pt  target=x.pt", r"target=x\.pt", "name a folder|new folder"),
        files={"x.pt": saved({"a": torch.zeros(3)}), "mine/model.safetensors": b"mine"},
    ),
    *[
        Case("convert", (f"kind={k}", "source=nowhere", "target=out"), ("source=nowhere", "give the official"))
        for k in KINDS
    ],
    *[
        Case(
            "convert",
            (f"kind={k}", "source=empty", "target=out"),
            ("empty", "give|holds none|missing|fetch"),
            files={"empty/x.txt": "x"},
        )
        for k in KINDS
    ],
    *sources("x.pt", b"", "x.pt", "is empty"),
    *sources("x.pt", HTML, "x.pt", "fetch|not a checkpoint|official"),
    *sources("x.pt", POINTER, "x.pt", "git lfs pull"),
    *sources("x.pt", saved({"a": Bomb()}), "x.pt", "other things than tensors"),
    *sources("x.pt", saved([1, 2]), "x.pt", "official file"),
    *sources("x.pt", saved({"a": torch.zeros(3)}), "tokenizer", "egrpo.download"),
    *sources("x.safetensors", b"\xff" * 64, "x.safetensors", "cut short|damaged|not"),
    *refused(
        "convert",
        ("kind=orm  source=m  target=out", "m/", "JSON|fetch|missing"),
        ("kind=janus  source=m  target=out", "m/", "JSON|fetch|missing"),
        ("kind=janus_original  source=m  target=out", "m/|source=m", "JSON|fetch|missing|give"),
        ("kind=orm  source=shards  target=out", "shards", "fetch|missing|wanted"),
        files={
            "m/config.json": HTML,
            "m/model.safetensors": HTML,
            "shards/config.json": '{"model_type": "multi_modality"}',
            "shards/model.safetensors.index.json": '{"weight_map": {"a": "model-1.safetensors"}}',
        },
    ),
    *refused(
        "download",
        ("", "what", "(?i)available options|choose|all"),
        ("what=everything", "everything", "choose from|did you mean"),
        ("what=hps  target=", "target= is empty", "name the file or folder"),
        ("what=hps  dry_run=maybe", "dry_run=maybe", "true or false"),
        ("what=git  target=mine", "mine/rewards/git", "move it away"),
        ("what=git  target=a.txt", r"a\.txt", "folder|exists"),
        ("what=git  target=new", "HF_HUB_OFFLINE", "by hand|put|fetch"),
        ("what=hps  what.hps.artifact.kind=3", "kind=3", "text"),
        files={"mine/rewards/git/notes.txt": "mine", "a.txt": "mine"},
    ),
    Case("download", ("what=all", "dry_run=true"), ("total:", "licence"), code=0),
    *refused(
        "export",
        ("", "run is not set", "run=VALUE"),
        ("run=", "run= is empty", "name the file or folder"),
        ("run=nowhere", "nowhere", "not the folder of a run"),
        ("run=run  checkpoint=first", "checkpoint=first", "there: last.ckpt"),
        ("run=run  checkpoint=best", "checkpoint=best", "there: last.ckpt"),
        ("run=run  checkpoint=", "checkpoint= is empty", "name the file or folder"),
        ("run=run  target=", "target= is empty", "name the file or folder"),
        ("run=run  target=mine", "target=mine", "name an empty or new folder"),
        ("run=run  target=run", "target=run", "name an empty or new folder"),
        ("run=run  target=run/config.yaml", "target=run/config.yaml", "name a folder"),
        ("run=none", "none/checkpoints", "there: none"),
        ("run=run  checkpoint=page.ckpt", r"page\.ckpt", "not a checkpoint"),
        files={
            **run_folder("run"),
            "none/config.yaml": config(),
            "mine/model.safetensors": b"mine",
            "page.ckpt": HTML,
        },
    ),
    Case(
        "export",
        ("run=run", "target=out"),
        ("exported",),
        code=0,
        files=run_folder("run"),
        leaves=("out/model.safetensors",),
    ),
    *refused(
        "plan",
        ("architecture=[janus_pro_70b]", "janus_pro_70b", "did you mean|choose from"),
        ("assumptions.plan_tokens=0", r"plan_tokens=0", "above 0"),
        ("assumptions.longest_plan=0.5", "longest_plan", "1 on|from 1"),
        ("assumptions.memory_efficiency=3", "memory_efficiency=3", "1 at most|share"),
        ("refuse_at=never", "refuse_at=never", "limits"),
        ("devices=0", "devices=0", "give|at least|from 1"),
        ("devices=many", "devices=many", "give|number"),
        ("model.path=nowhere", "nowhere", r"model\.path"),
        ("reward=[]", "refers to reward", "give it as reward="),
        ("+experiment=eg_grpo_janus_pro_7b  device.memory_gb=8", "memory", "ways|would|none"),
        ("device.tflops={}", "tflops", "add device.tflops"),
        ("ways_out=3", "ways_out=3", "a list"),
        ("rollout.group_size=2.5", r"rollout\.group_size=2\.5", "a whole number"),
    ),
    *refused(
        "plan", ("ckpt_path=lone.ckpt  data=file", r"data\.train", "set data.train"), files={"lone.ckpt": checkpoint()}
    ),
]
