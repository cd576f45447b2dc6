"""Every key and value of a composed configuration, checked before a command does anything."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from egrpo.base.errors import UserError
from egrpo.settings.allowed import fault
from egrpo.settings.known import Known, known_settings
from egrpo.settings.signatures import parameters_of

OF_HYDRA = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
# Mappings whose keys are names that the user gives; below them, nodes are checked as anywhere.
NAMED = (
    *("reward", "judge", "logger", "callbacks", "ensemble.rewards", "module.judges"),
    *("study", "also_validate", "settings", "space", "sections", "what", "networks", "stages"),
    *("architectures", "published_rewards"),
)
OBJECTS = ("reward", "judge", "logger", "callbacks")  # of which every entry is an object, or null
REFERENCE = re.compile(r"\$\{\s*([A-Za-z_][\w.@]*)\s*\}")


def check_settings(cfg: DictConfig, root: str) -> None:
    """Checks names and values.

    A key is known where the signature of its node's `_target_` has it, or a yaml file of the command; one that the
    user added is fine where another setting refers to it (`${my_rate}`). A value must fit the annotation of what
    receives it, or what its yaml holds, and the range that `egrpo.settings.allowed` gives its name.

    Args:
        cfg: As composed, interpolations not yet resolved.
        root: The command's yaml, as "train"; for another one, names outside of nodes with a `_target_` go unchecked.

    Raises:
        UserError: names every unknown key with the nearest one, every wrong value with what is allowed; a line each.
    """
    check = Check(set(_references(cfg)))
    check.node(cfg, "", known_settings(root))
    if check.faults:
        raise UserError("\n".join(check.faults.values()))


def nearest(name: str, known: Collection[str]) -> str:
    """ "did you mean beta?", or all that there are."""
    names = {other.lower(): other for other in sorted(known)}
    close = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.5)
    if close:
        return f"did you mean {names[close[0]]}?"
    return f"choose from {', '.join(sorted(known))}" if known else "it has no settings"


@dataclass
class Check:
    """A walk through one configuration.

    Args:
        references: Dotted keys that some setting refers to.
    """

    references: set[str]
    faults: dict[str, str] = field(default_factory=dict)  # by key: one reached on two ways is reported once

    def node(self, node: DictConfig, path: str, known: Known | None) -> None:
        """A mapping: its names, then what is in it."""
        annotations: dict[str, Any] = {}
        names: Collection[str] | None
        target = "_target_" in node
        if target:
            try:
                parameters = parameters_of(str(node["_target_"]))
            except (InstantiationException, ImportError, ValueError):
                return  # building the object says so, with the reason
            annotations, names = parameters.annotations, parameters.annotations if parameters.closed else None
            known = known if known is not None else Known()
        else:
            names = known.below if known is not None and known.below and path not in NAMED else None
        for key in map(str, node):
            if key in OF_HYDRA:
                continue
            place = f"{path}.{key}".lstrip(".")
            if names is not None and key not in names:
                if not self.is_referred_to(place):
                    others = {*names, *(known.groups if known is not None else ())}
                    where = f" ({node['_target_']})" if target else ""
                    self.faults.setdefault(place, f"{place}: there is no such setting{where}; {nearest(key, others)}")
                continue
            self.entry(node, key, place, annotations.get(key, Any), None if known is None else known.below.get(key))
        if path in OBJECTS:
            self.objects(node, path)

    def entry(self, node: DictConfig, key: str, place: str, annotation: Any, known: Known | None) -> None:
        """One key: a mapping is walked where it stands, a value is checked and reported where it was set."""
        raw = node._get_node(key)
        source = place
        if OmegaConf.is_interpolation(node, key) and (found := REFERENCE.fullmatch(str(raw._value()))):  # type: ignore[union-attr]
            source = found[1]
        try:
            value = node[key]
            plain = OmegaConf.to_container(value, resolve=True) if isinstance(value, ListConfig) else value
        except (InterpolationResolutionError, MissingMandatoryValue):
            return  # whatever reads it says so
        if isinstance(value, DictConfig) and source == place:
            self.node(value, place, known or Known())
        elif isinstance(value, ListConfig) and source == place and any(isinstance(v, DictConfig) for v in value):
            for number, item in enumerate(value):
                if isinstance(item, DictConfig):
                    self.node(item, f"{place}[{number}]", Known())
        elif not isinstance(value, DictConfig):
            said = fault(source, plain, annotation, [] if known is None else known.values)
            self.faults |= {} if said is None or source in self.faults else {source: said}

    def objects(self, node: DictConfig, path: str) -> None:
        """Entries without a `_target_`, such as a misspelt name gives, would build nothing."""
        for key in map(str, node):
            value = node._get_node(key)
            if isinstance(value, DictConfig) and not value._is_none() and "_target_" not in value:
                others = [str(k) for k in node if k != key and isinstance(node._get_node(k), DictConfig)]
                said = f"{path}.{key} has no _target_, so it is nothing that can be built; {nearest(key, others)}"
                self.faults.setdefault(f"{path}.{key}", said)

    def is_referred_to(self, place: str) -> bool:
        return any(r == place or r.startswith(place + ".") for r in self.references)


def _references(node: Any) -> Iterator[str]:
    """All dotted keys that interpolations name."""
    for key in node if isinstance(node, DictConfig) else range(len(node)):
        child = node._get_node(key)
        if isinstance(child, DictConfig | ListConfig) and not child._is_interpolation() and not child._is_none():
            yield from () if child._is_missing() else _references(child)
        elif child is not None and child._is_interpolation():
            yield from REFERENCE.findall(str(child._value()))
