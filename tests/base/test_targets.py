"""No command writes over files that it did not make."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from egrpo.base.errors import UserError
from egrpo.base.targets import claim_file, claim_target
from egrpo.convert import convert
from egrpo.export import export


def test_a_new_an_empty_and_an_own_folder_are_taken(tmp_path):
    for _ in range(2):
        claim_target(tmp_path / "new", "target", "export")
        (tmp_path / "new" / "config.json").write_text("{}")
    claim_target(tmp_path / "new", "target", "export")
    (tmp_path / "empty").mkdir()
    claim_target(tmp_path / "empty", "target", "export")


def test_foreign_files_are_refused_and_left(tmp_path):
    for name in ("thesis.tex", "config.json", "b", "c"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError) as caught:
        claim_target(tmp_path, "target", "export")
    assert str(caught.value) == (
        f"target={tmp_path} holds files that egrpo.export did not make (b, c, config.json and 1 more) and would write "
        "over: name an empty or new folder"
    )
    assert not (tmp_path / ".egrpo").exists()


def test_another_commands_folder_a_file_and_a_sign(tmp_path):
    claim_target(tmp_path / "a", "target", "convert")
    with pytest.raises(UserError, match=r"was made by egrpo.convert: name another folder"):
        claim_target(tmp_path / "a", "target", "export")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file: name a folder"):
        claim_target(tmp_path / "file", "target", "export")
    claim_target(tmp_path, "target", "export", signs=("file",))  # as a version without marks left it


def test_a_folder_that_only_holds_other_things_is_taken_where_names_are_known(tmp_path):
    (tmp_path / "README.md").write_text("by hand")
    claim_target(tmp_path, "target", "collect", names=("table.md",))
    (tmp_path / ".egrpo").unlink()
    (tmp_path / "table.md").write_text("by hand")
    with pytest.raises(UserError, match=r"did not make \(table.md\)"):
        claim_target(tmp_path, "target", "collect", names=("table.md",))


def test_a_file_of_another_kind_is_not_written_over(tmp_path):
    path = tmp_path / "w.json"
    claim_file(path, "target", "spec")
    for text in ("notes", "[]", '{"a": 1}'):
        path.write_text(text)
        with pytest.raises(UserError, match="was not made by this command"):
            claim_file(path, "target", "spec")
    path.write_text('{"spec": {}}')
    claim_file(path, "target", "spec")


def test_convert_leaves_a_foreign_target_alone(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "thesis.tex").write_text("mine")
    cfg = OmegaConf.create(
        {"kind": {"_target_": "builtins.print"}, "source": str(tmp_path / "source"), "target": str(tmp_path)}
    )
    with pytest.raises(UserError, match=r"holds files that egrpo.convert did not make"):
        convert(cfg)
    cfg.source = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"source=.*nowhere does not exist"):
        convert(cfg)


def test_export_leaves_a_foreign_target_alone(tmp_path, monkeypatch):
    def written(*_: object) -> None:
        raise AssertionError("written")

    for name, value in (
        ("run_config", None),
        ("find_checkpoint", None),
        ("policy_of_run", SimpleNamespace(export=written)),
    ):
        monkeypatch.setattr(f"egrpo.export.{name}", lambda *_, value=value: value)
    (tmp_path / "model.safetensors").write_text("mine")
    cfg = OmegaConf.create({"run": str(tmp_path), "checkpoint": "last", "target": str(tmp_path)})
    with pytest.raises(UserError, match=r"did not make \(model.safetensors\)"):
        export(cfg)
    assert (tmp_path / "model.safetensors").read_text() == "mine"
