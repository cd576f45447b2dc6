"""A command line that Hydra cannot read is answered with the form that it can read, or with the nearest name."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from egrpo.base.errors import UserError
from egrpo.paths import config_dir
from egrpo.settings.check import NAMED, nearest
from egrpo.settings.known import Known, known_settings
from egrpo.settings.overrides import override
from egrpo.settings.signatures import parameters_of

FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")
NO_SUCH_KEY = re.compile(r"Could not (override|delete from config)\W+([\w.@/]+)'")
MISSING = re.compile(r"(?:Missing mandatory value: |^Key ')([\w.]+)(?:$|' is not in struct)", re.MULTILINE)
UNRESOLVED = re.compile(r"Interpolation key '([\w.]+)' not found")
NOT_ONE_VALUE = re.compile(r"(?:Sweep parameters|Ambiguous value for argument) '(.*?)'(?: requires|\n)", re.DOTALL)


def check_words(words: Sequence[str], folder: str = "") -> None:
    """Refuses what Hydra itself would misunderstand: a run's folder without a name, which it would take for the current
    one, before it writes there; an override without a key; a number or a truth value as the choice of a group.

    Args:
        words: The command line.
        folder: Within `conf`, where the command's groups lie.

    Raises:
        UserError: one of these.
    """
    for word in words:
        if not word.strip():
            raise UserError("an override is empty (a variable that is not set?): leave it out, or write key=value")
        key, equals, value = word.partition("=")
        if equals and key.lstrip("+") in FOLDERS and not value.strip("'\" "):
            raise UserError(_no_folder(key))
        if equals and not key.strip("+~ "):
            raise UserError(f"{word}: there is no key before the equals sign; an override is written key=value")
        choices = choices_of(key.lstrip("+"), folder) if equals else []
        if choices and isinstance(_parsed(word), bool | int | float | dict):
            raise UserError(f"{word}: {value} is none of its choices; {nearest(value, choices)}")


def choices_of(group: str, folder: str = "") -> list[str]:
    """The names of a group's yaml files, of `conf` or a folder within it; empty where there is no such group."""
    name = group.partition("@")[0]
    plain = name and not name.startswith((".", "/")) and ".." not in name
    found = (Path(config_dir()) / folder / name).glob("*.yaml") if plain else []
    return sorted(path.stem for path in found if not path.stem.startswith("_"))


def _parsed(word: str) -> object:
    """The value that Hydra reads in an override; the word itself where it reads none, which Hydra reports."""
    try:
        return OverridesParser.create().parse_override(word).value()
    except (HydraException, ValueError):
        return word


def check_folder() -> None:
    """The same of the folder that Hydra has composed, where a variable in a yaml may be empty.

    Raises:
        UserError: it has no name.
    """
    hydra = HydraConfig.get()
    many = hydra.mode == RunMode.MULTIRUN
    key, folder = (FOLDERS[1], hydra.sweep.dir) if many else (FOLDERS[0], hydra.run.dir)
    if not str(folder).strip():
        raise UserError(_no_folder(key))


def _no_folder(key: str) -> str:
    return f"{key}= is empty (a variable that is not set?): name the folder, for the current one {key}=."


def explained(error: HydraException, root: str) -> Exception:
    """Hydra's error about a command line in this project's words; any other error as it is.

    Args:
        root: The command's yaml, as in `known_settings`.
    """
    text = str(error)
    if isinstance(error, MissingConfigException):
        group, _, choice = str(error.missing_cfg_file or "").rpartition("/")
        names = [n for n in error.options or [] if not n.startswith("_")] or choices_of(group, root.rpartition("/")[0])
        return UserError(f"{group}={choice}: there is no such choice; {nearest(choice, names)}") if names else error
    if isinstance(error, OverrideParseException):
        return UserError(f"{text.splitlines()[0]} in {error.override}\n{_quoted(error.override)}")
    if isinstance(error, InstantiationException) or not isinstance(error, ConfigCompositionException):
        return error
    if several := NOT_ONE_VALUE.search(text):
        return UserError(f"{text.splitlines()[0]}\n{_quoted(several[1])}; several values, one a run, need -m")
    if found := NO_SUCH_KEY.search(text):
        return UserError(_no_such_key(found[2], known_settings(root), removed=found[1] != "override"))
    return error


def explained_key(error: OmegaConfBaseException) -> str:
    """OmegaConf's error about a key without a value as a sentence; any other one as it is."""
    text, key = str(error).strip(), str(error.full_key or "")
    if found := MISSING.search(text):
        return f"{found[1]} is not set: give it as {found[1]}=VALUE"
    if found := UNRESOLVED.search(text):
        return f"{key} refers to {found[1]}, which is not set: give it as {found[1]}=VALUE"
    return text


def explained_part(error: InstantiationException) -> BaseException:
    """The error that building an object raised; of a `_target_` that cannot be found, and of Lightning's refusal of a
    setting, one sentence that names the key."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    cause, text = error.__cause__, str(error)
    if cause is None:
        return error
    key = text.rpartition("full_key: ")[2].strip() if "full_key: " in text else ""
    if text.startswith("Error locating target"):
        name = text.split("'")[1]
        why = str(cause).rpartition("\n")[2] or str(cause)
        told = UserError(f"{key}._target_={name}".lstrip(".") + f" cannot be imported: {why}")
    elif isinstance(cause, MisconfigurationException):
        told = UserError(f"{key}: {cause}; set it right with {key}.NAME=VALUE")
    else:
        return cause
    told.__cause__ = cause
    return told


def _quoted(word: str) -> str:
    key, _, value = word.partition("=")
    if not value:
        return "an override is written key=value"
    text = value.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")
    form = f"'{key}=\"{text}\"'" if "'" not in value else shlex.quote(override(key, value.replace("${", "\\${")))
    return f"as one text it is written {form}: quotes for the shell outside, for Hydra inside"


def _no_such_key(key: str, known: Known | None, removed: bool) -> str:
    above, _, name = key.rpartition(".")
    for place in NAMED:
        entry = key.removeprefix(f"{place}.").partition(".")[0]
        others = _names(known, place)
        if key.startswith(f"{place}.") and not (entry in others and key != f"{place}.{entry}"):
            if removed:
                return f"{key}: this run has no such entry in {place}, so there is nothing to leave out"
            hint = "" if entry in others else nearest(entry, others)
            meant = hint.replace("did you mean ", f"did you mean {place}.") + " " if hint.startswith("did") else ""
            return f"{key}: there is no such entry in {place}; {meant}A new one is added with a plus: +{key}=..."
    while above and not _names(known, above):  # what is above is not known either: that is the misspelt one
        above, _, name = above.rpartition(".")
    hint = nearest(name, _names(known, above))
    if above and hint.startswith("did you mean"):
        hint = hint.replace("did you mean ", f"did you mean {above}.")
    return f"{key}: there is no such setting; {hint}"


def _names(known: Known | None, path: str) -> set[str]:
    """The keys at a dotted path: those of yaml files, and those that a `_target_` there takes."""
    node: Known | None = known
    for key in filter(None, path.split(".")):
        node = node.below.get(key) if node is not None else None
    if node is None:
        return set()
    targets = node.below["_target_"].values if "_target_" in node.below else []
    taken = {name for target in targets for name in parameters_of(str(target)).annotations}
    return {name for name in node.below if not name.startswith("_")} | taken
