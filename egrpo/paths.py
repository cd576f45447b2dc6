"""Where the project's own files lie, in a checkout as in an installed wheel."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from egrpo.base.errors import MissingFileError

PACKAGE_PREFIX = "package:"

_PACKAGE = Path(__file__).resolve().parent


def config_dir() -> str:
    """Absolute path of the folder with the Hydra configuration.

    An installed wheel carries it as `egrpo/conf`; in a checkout it lies beside the package.

    Raises:
        FileNotFoundError: neither place holds it.
    """
    installed, checkout = _PACKAGE / "conf", _PACKAGE.parent / "conf"
    if installed.is_dir():
        return str(installed)
    # A folder `conf` beside an installed package belongs to somebody else: pyproject.toml marks the checkout.
    if checkout.is_dir() and (_PACKAGE.parent / "pyproject.toml").is_file():
        return str(checkout)
    raise MissingFileError(f"egrpo's configuration is neither in {installed} nor in {checkout}: install egrpo again.")


def resolve(path: str | Path) -> Path:
    """A path as written in a config: `package:egrpo/shapes/x.jsonl` names a file inside an installed package.

    Raises:
        FileNotFoundError: the package of a `package:` path cannot be found.
    """
    text = str(path)
    if not text.startswith(PACKAGE_PREFIX):
        return Path(text).expanduser()
    package, _, inner = text.removeprefix(PACKAGE_PREFIX).partition("/")
    try:
        root = resources.files(package)
    except (ModuleNotFoundError, ValueError) as error:
        raise MissingFileError(f'"{text}" names the package "{package}", which is not installed') from error
    return Path(str(root)) / inner
