"""The wheel carries all that a run needs, and the configuration is found in a checkout as in a wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from egrpo.paths import config_dir, resolve

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the present tree, built from a copy: a build writes into its source folder."""
    root = tmp_path_factory.mktemp("wheel")
    source = root / "source"
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("egrpo", "conf"):
        shutil.copytree(REPO / folder, source / folder, ignore=unwanted)
    for name in ("pyproject.toml", "setup.py", "LICENSE"):
        shutil.copy(REPO / name, source / name)
    assets = source / "egrpo" / "shapes" / "assets" / "nested"
    assets.mkdir(parents=True, exist_ok=True)
    (assets / "probe.bin").write_bytes(b"x")
    (source / "conf" / "probe" / "deep").mkdir(parents=True)
    (source / "conf" / "probe" / "deep" / "probe.yaml").write_text("probe: 1\n")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check"]
    built = subprocess.run([*command, "--outdir", root, source], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = root.glob("egrpo-*.whl")
    return path


def test_wheel_holds_configuration_assets_licence_and_every_module(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    configuration = {f"egrpo/{path.relative_to(REPO).as_posix()}" for path in (REPO / "conf").rglob("*.yaml")}
    modules = {path.relative_to(REPO).as_posix() for path in (REPO / "egrpo").rglob("*.py")}
    shipped = {
        path.relative_to(REPO).as_posix()
        for path in (REPO / "egrpo" / "shapes").glob("assets/**/*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected = configuration | modules | shipped
    assert not expected - names
    assert "egrpo/conf/probe/deep/probe.yaml" in names
    assert "egrpo/shapes/assets/nested/probe.bin" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "conf/")) for name in names)


def test_unpacked_wheel_finds_its_own_configuration(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import egrpo.paths as p; print(p.__file__); print(p.config_dir()); print(p.resolve('package:egrpo/conf'))"
    # -P and another working directory: the checkout must not be importable.
    ran = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    module, found, resolved = map(Path, ran.stdout.split())
    assert module == tmp_path / "site" / "egrpo" / "paths.py"
    assert found == resolved == tmp_path / "site" / "egrpo" / "conf"
    assert {path.name for path in found.glob("*.yaml")} == {path.name for path in (REPO / "conf").glob("*.yaml")}
    assert (found / "probe" / "deep" / "probe.yaml").is_file()


def test_checkout_uses_the_folder_beside_the_package() -> None:
    assert Path(config_dir()) == REPO / "conf"


def test_missing_configuration_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("egrpo.paths._PACKAGE", tmp_path / "site" / "egrpo")
    (tmp_path / "site" / "conf").mkdir(parents=True)  # somebody else's: no pyproject.toml beside it
    with pytest.raises(FileNotFoundError, match="install egrpo again"):
        config_dir()


def test_resolve_leaves_plain_paths_alone(tmp_path: Path) -> None:
    assert resolve("a/b.jsonl") == Path("a/b.jsonl")
    assert resolve(tmp_path) == tmp_path
    assert resolve("package:egrpo/types.py") == REPO / "egrpo" / "types.py"
