"""Walks through conf/ and composes what is there.

Conventions that the tests hold: a yaml right under conf/ is a root, the configuration of one command; a folder is a
group. The files of two groups are added rather than chosen: `+experiment=NAME`, and after it `+debug=NAME`. The header
of an experiment names its command, and the command its root; debug is for conf/train.yaml:

    # command:  python -m egrpo.train +experiment=NAME        -> conf/train.yaml
"""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from egrpo.settings.signatures import parameters_of

CONF = Path(__file__).parents[2] / "conf"
ROOTS = sorted(path.stem for path in CONF.glob("*.yaml"))
EXPERIMENTS = sorted(str(p.relative_to(CONF / "experiment").with_suffix("")) for p in CONF.glob("experiment/**/*.yaml"))
DEBUGS = sorted(path.stem for path in CONF.glob("debug/*.yaml"))
COMMAND = re.compile(r"^# command:\s+python -m egrpo\.(?:shapes\.)?(\w+) ", re.MULTILINE)


def composed(root: str, *overrides: str) -> DictConfig:
    """The root's configuration as the command sees it, outside a run: what the user or the run's folder gives is given.

    Of a group without a default it is the first choice, where `overrides` name none.
    """
    own = OmegaConf.to_container(OmegaConf.load(CONF / f"{root}.yaml"))
    assert isinstance(own, dict)
    places = [
        f"{key}=a_folder" for key in ("run_dir", "source", "target", "run", "prompts", "model_name") if key in own
    ]
    places += [f"{key}=a_name" for key in ("study", "entity") if own.get(key) == "???"]
    places += [
        f"{group}={choices_of(group)[0]}"
        for group, choice in defaults_of(root).items()
        if choice == "???" and not any(override.startswith(f"{group}=") for override in overrides)
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(root, [*places, *overrides])


@cache
def resolved(root: str, *overrides: str) -> dict[str, Any]:
    """The same as plain dictionaries, all interpolations filled in. Shared by the tests: leave it as it is."""
    container = OmegaConf.to_container(composed(root, *overrides), resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def defaults_of(root: str) -> dict[str, Any]:
    """Group -> its choice, "???" where the user must choose, or list of choices, in the root's defaults list.

    Groups within a group that its choices name (model/templates) count too.
    """
    own = defaults_in(f"{root}.yaml")
    nested = {
        f"{group}/{key}": choice
        for group in own
        for name in choices_of(group)
        for key, choice in defaults_in(f"{group}/{name}.yaml").items()
        if not key.startswith("/")
    }
    return {**nested, **own}


def defaults_in(path: str) -> dict[str, Any]:
    """Group -> choice in the defaults list of one yaml, groups as written there."""
    own = OmegaConf.to_container(OmegaConf.load(CONF / path))
    assert isinstance(own, dict)
    entries = [entry for entry in own.get("defaults", []) if isinstance(entry, dict)]
    return {key.split()[-1]: choice for entry in entries for key, choice in entry.items()}


def choices_of(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def group_choices(root: str) -> list[str]:
    """An override a choice, for all groups of the root: "cot=off", "reward=[shapes_strict]".

    Groups within a group are left out where the default choice has none; the choices that have them bring one each.
    """
    return [
        f"{group}=[{choice}]" if isinstance(default, list) else f"{group}={choice}"
        for group, default in defaults_of(root).items()
        if is_within_default(root, group)
        for choice in choices_of(group)
    ]


def is_within_default(root: str, group: str) -> bool:
    """Whether the group is the root's own, or one that the default choice of the group above it names."""
    above, _, name = group.rpartition("/")
    choice = defaults_in(f"{root}.yaml").get(above)
    if group in defaults_in(f"{root}.yaml") or not isinstance(choice, str) or choice == "???":
        return True
    return name in defaults_in(f"{above}/{choice}.yaml")


def root_of(experiment: str) -> str:
    """The root that an experiment is for, by the command in its header."""
    found = COMMAND.search((CONF / "experiment" / f"{experiment}.yaml").read_text())
    assert found, f"conf/experiment/{experiment}.yaml has no line '# command:  python -m egrpo.ROOT ...' in its header"
    return found[1]


def key_paths(node: Any, prefix: str = "") -> set[str]:
    """Every key of a nested mapping, with the keys above it: "trainer.max_steps"."""
    if not isinstance(node, dict):
        return set()
    return {path for key, value in node.items() for path in {f"{prefix}{key}"} | key_paths(value, f"{prefix}{key}.")}


def targets(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping with a `_target_`, with its path."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from targets(value, f"{path}[{index}]")


def check_target(path: str, node: dict[str, Any]) -> None:
    """The target exists, its keyword arguments are ones that it takes, and none that it needs is missing."""
    target = get_object(node["_target_"])
    assert callable(target), f"{path}: {node['_target_']} is not callable"
    given = {key for key in node if key not in ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")}
    signature = inspect.signature(target)
    parameters = parameters_of(node["_target_"])
    assert parameters.closed, f"{target} takes any keyword argument, a misspelt one too: add it to FORWARDED"
    unknown = given - parameters.annotations.keys()
    assert not unknown, f"{path}: {node['_target_']} takes no {sorted(unknown)}"
    named = given & set(signature.parameters)
    if node.get("_partial_"):
        signature.bind_partial(**dict.fromkeys(named))
    else:
        signature.bind(**dict.fromkeys(named))


def command_module(root: str) -> str:
    """The module whose command reads a root: egrpo.ROOT, or egrpo.shapes.ROOT."""
    for name in (f"egrpo.{root}", f"egrpo.shapes.{root}"):
        if importlib.util.find_spec(name):
            return name
    raise AssertionError(f"conf/{root}.yaml has no command: neither egrpo.{root} nor egrpo.shapes.{root} exists")
