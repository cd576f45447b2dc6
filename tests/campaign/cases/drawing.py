"""Runs, checkpoints and models that are damaged, foreign or hold code, as generate, evaluate, analyze and train read
them; folders that hold somebody else's files."""

from __future__ import annotations

import json
from typing import Any

from tests.campaign.case import Case, refused
from tests.campaign.files import CHECKPOINTS, HTML, POINTER, checkpoint, config, line, run_folder

NO_TENSORS = b"\x02" + bytes(7) + b"{}"  # a whole safetensors file
READERS = {
    "generate": ("prompts=[a]", "ckpt_path=run"),
    "evaluate": ("ckpt_path=run", "logger=none"),
    "export": ("run=run", "target=out"),
}


def damaged() -> list[Case]:
    """Every kind of damage from every command that reads a run."""
    cases = []
    for number, (content, told) in enumerate(CHECKPOINTS.values()):
        for command, words in READERS.items():
            if command != "generate" and number % 2:  # they share their readers
                continue
            files = run_folder("run", content)
            says = ("last.ckpt" if told not in ("shape", "does not fit this model") else "checkpoint", told)
            cases.append(Case(command, words, says, files=files))
        words = ("logger=none", "ckpt_path=run/checkpoints/last.ckpt", "hydra.run.dir=run")
        if told not in ("shape", "does not fit this model", "holds NaN"):  # that a checkpoint does not fit shows late
            own = {"run/checkpoints/last.ckpt": content}
            cases.append(Case("train", words, ("last.ckpt", told), files=own))
    return cases


def with_config(content: Any, *says: str) -> list[Case]:
    """A run whose config.yaml is something else."""
    files = {"run/config.yaml": content, "run/checkpoints/last.ckpt": checkpoint()}
    return [Case(command, words, says, files=files) for command, words in READERS.items()]


def with_model(command: str, config_json: Any, *says: str, weights: Any = NO_TENSORS) -> Case:
    """A folder of a model that cannot be loaded."""
    files = {"m/config.json": config_json, "m/model.safetensors": weights}
    return Case(
        command, ("prompts=[a]", "model.path=m") if command == "generate" else ("model.path=m",), says, files=files
    )


CASES = [
    *damaged(),
    *with_config("", r"config\.yaml|not the folder of a", "run"),
    *with_config("- 1\n- 2\n", r"config\.yaml", "not what a run left"),
    *with_config("a: [1", r"config\.yaml", "not what a run left"),
    *with_config(POINTER, r"config\.yaml", "git lfs pull"),
    *with_config(HTML, r"config\.yaml|not the folder of a", "run"),
    *with_config(config(_target_="os.system"), r"os\.system", "EGRPO_TRUST"),
    *with_config(config(path="nowhere/at/all"), "nowhere/at/all", r"model\.path"),
    with_model("generate", HTML, "m", "config.json|Janus|JSON"),
    with_model("generate", "{}", "m", "Janus"),
    with_model("generate", '{"model_type": "llama"}', "is not a Janus checkpoint", "llama"),
    with_model("generate", '{"model_type": "multi_modality"}', "original format", "egrpo.convert kind=janus"),
    with_model("generate", '{"model_type": "janus"}', "m", "safetensors|empty|weights", weights=POINTER),
    with_model("evaluate", '{"model_type": "llama"}', "is not a Janus checkpoint", "llama"),
    *refused(
        "generate",
        ("prompts=[a]  ckpt_path=nowhere", "nowhere", "there is no|does not exist|no such"),
        ("prompts=[a]  ckpt_path=", "ckpt_path= is empty", "name the file or folder"),
        ("prompts=[a]  ckpt_path=empty", "empty", "config.yaml|checkpoint"),
        ("prompts=[a]  ckpt_path=lone.ckpt", r"lone\.ckpt", "config.yaml of its run|export the run"),
        ("prompts=[a]  ckpt_path=model", "this is a model", "model.path="),
        ("prompts=[a]  ckpt_path=none", "none", "no such checkpoint"),
        ("prompts=[a]  model.path=", r"model\.path= is empty", "name the file"),
        ("prompts=[a]  model.path=../nowhere", "nowhere", r"model\.path="),
        ("prompts=[a]  model=shape", "shape", "did you mean shapes"),
        ("prompts=[a]  model/templates=worldknowledge", "worldknowledge", "did you mean world_knowledge"),
        ("prompts=[a]  rollout.cfg_weight=1e38", r"rollout\.cfg_weight=1e38", "from 0 to 1000"),
        ("prompts=[a]  rollout.top_p=2", r"rollout\.top_p=2", "up to 1"),
        ("prompts=[a]  hydra.run.dir=taken", "taken", "hydra.run.dir|remove it"),
        ("prompts=[a]  hydra.run.dir=a.txt", r"a\.txt", "folder"),
        files={
            "empty/x.txt": "x",
            "lone.ckpt": checkpoint(),
            "model/config.json": '{"model_type": "janus"}',
            "none/config.yaml": config(),
            "taken/manifest.json": HTML,
            "taken/images/mine.png": b"mine",
            "a.txt": "mine",
        },
        makes=("taken/config.yaml",),
    ),
    *refused(
        "evaluate",
        ("checkpoints=all", "checkpoints=all", "ckpt_path"),
        ("checkpoints=some", "checkpoints=some", "checkpoints=all"),
        ("checkpoints=all  ckpt_path=none", "none/checkpoints", "there: none"),
        ("checkpoints=all  ckpt_path=bad", r"last\.ckpt", "other things than tensors"),
        files={"none/config.yaml": config(), **run_folder("bad", CHECKPOINTS["code"][0])},
    ),
    *refused(
        "analyze",
        ("prompts=nowhere.jsonl", r"nowhere\.jsonl", "does not exist"),
        ("prompts=few.jsonl  splits=null", "num_prompts=40", "holds only 1"),
        ("splits=[unseen]", "splits|unseen", "holds only|choose|there are"),
        ("settings={}", "settings", "give at least one|settings"),
        ("~settings", "settings", "give at least one|has no settings"),
        ("+settings.mine.ckpt_path=nowhere", r"settings\.mine\.ckpt_path=nowhere", "say how to train it"),
        ("+settings.mine.train=[seed=1]", r"settings\.mine\.train", "say where the run is kept"),
        ("+settings.mine=3", r"settings\.mine", "give|mapping|setting"),
        ("+settings={a b:{cot:true}}", "settings", "letters, digits|quotes"),
        ("report.baseline=bass", "bass", "name one of base"),
        ("report.cot_pair=[base]", "cot_pair", "two|list of 2|\\[without"),
        ("report.cot_pair=[base,nothing]", "nothing", "name one of base"),
        ("report.training_pairs=[[base,x]]", '"x"', "name one of base"),
        ("report.entropy=both", "both", "guided"),
        ("report.stratum_quantile=0", "stratum_quantile", "above 0"),
        ("report.resamples=3", "resamples", "at least 100"),
        ("processes=0", "processes=0", "from 1"),
        ("reward=[]", "refers to reward", "give it as reward="),
        ("reward=[gdino]  reward_models=nowhere", "nowhere/gdino", "egrpo.download"),
        ("hydra.run.dir=taken", "taken|study.json", "hydra.run.dir|remove|folder"),
        ("settings.base.ckpt_path=page", "page", "config.yaml|not the folder|no such"),
        files={"few.jsonl": line(), "taken/study.json": HTML, "taken/records.parquet": HTML, "page/x.html": HTML},
        makes=("taken/study.json",),
    ),
    *refused(
        "train",
        ("hydra.run.dir=done  logger=none", "done holds", "go_on=true"),
        ("hydra.run.dir=begun  logger=none", "begun holds", "ckpt_path="),
        ("hydra.run.dir=damaged  logger=none  go_on=true", r"summary\.json is damaged", "remove it"),
        ("hydra.run.dir=a.txt  logger=none", r"a\.txt", "folder|exists"),
        ("ckpt_path=empty", "empty", "checkpoint"),
        ("ckpt_path=", "ckpt_path= is empty", "name the file"),
        ("go_on=maybe", "go_on=maybe", "true or false"),
        files={
            "done/summary.json": json.dumps({"validation": {}}),
            "begun/checkpoints/last.ckpt": checkpoint(),
            "damaged/summary.json": '{"validation": ',
            "empty/x.txt": "x",
            "a.txt": "mine",
        },
    ),
]
