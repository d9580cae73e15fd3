"""A models file is read again when it changes, and a bad one changes nothing."""

import os
from pathlib import Path

import pytest

from shared.models_file.problems import ModelsFileError
from workers.host.file_watch import FileWatch

ONE, TWO = '[models.a]\nsource = "one"\n', '[models.a]\nsource = "two"\n'


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_that_is_written_is_read_once(tmp_path: Path) -> None:
    watch = FileWatch(written(tmp_path / "models.toml", ONE))
    assert not watch.changed()

    written(tmp_path / "models.toml", TWO + "\n")

    assert watch.changed()
    assert watch.file.models["a"].source == "two"
    assert not watch.changed()


def test_a_link_that_leads_to_another_file_is_a_change(tmp_path: Path) -> None:
    """So a volume of a ConfigMap changes: `models.toml` leads to `..data/models.toml`, and `..data` is replaced."""
    for folder, text in (("first", ONE), ("second", TWO)):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder / "models.toml", text)
        os.utime(tmp_path / folder / "models.toml", (1, 1))
    (tmp_path / "..data").symlink_to("first")
    (tmp_path / "models.toml").symlink_to("..data/models.toml")
    watch = FileWatch(tmp_path / "models.toml")

    (tmp_path / "..new").symlink_to("second")
    (tmp_path / "..new").rename(tmp_path / "..data")

    assert watch.changed()
    assert watch.file.models["a"].source == "two"


def test_the_same_content_written_again_is_no_change(tmp_path: Path) -> None:
    watch = FileWatch(written(tmp_path / "models.toml", ONE))

    os.utime(written(tmp_path / "models.toml", ONE), (5, 5))

    assert not watch.changed()
    assert not watch.changed(look=True)


@pytest.mark.parametrize("bad", ["[models.a]\nsorce = 1\n", "not toml", ""])
def test_a_bad_file_changes_nothing_and_its_error_is_kept_until_it_is_right(tmp_path: Path, bad: str) -> None:
    watch = FileWatch(written(tmp_path / "models.toml", ONE))

    written(tmp_path / "models.toml", bad)
    assert not watch.changed()
    assert "models.toml, line" in watch.error
    assert watch.file.models["a"].source == "one"

    written(tmp_path / "models.toml", TWO)
    assert watch.changed()
    assert watch.error == ""


def test_a_file_that_is_gone_changes_nothing(tmp_path: Path) -> None:
    watch = FileWatch(written(tmp_path / "models.toml", ONE))

    (tmp_path / "models.toml").unlink()

    assert not watch.changed()
    assert "cannot be read" in watch.error
    written(tmp_path / "models.toml", ONE)
    assert not watch.changed()
    assert watch.error == ""


def test_the_first_content_must_be_right(tmp_path: Path) -> None:
    with pytest.raises(ModelsFileError):
        FileWatch(tmp_path / "models.toml")


def test_a_change_is_told_by_the_names_of_what_differs(tmp_path: Path) -> None:
    watch = FileWatch(written(tmp_path / "models.toml", '[models.a]\n[models.b]\n[routes.any]\norder = ["a"]\n'))

    written(tmp_path / "models.toml", 'default = "a"\n[host]\ndevices = []\n[models.a]\npin = true\n[models.c]\n')

    assert watch.changed()
    told = "model added: c; model removed: b; model changed: a; route removed: any; default changed; host changed"
    assert watch.change == told


def test_a_change_of_a_default_is_one_of_every_model_and_a_comment_is_none(tmp_path: Path) -> None:
    watch = FileWatch(written(tmp_path / "models.toml", ONE))

    written(tmp_path / "models.toml", f"# new\n{ONE}")
    assert watch.changed()
    assert watch.change == "nothing but its text"
    written(tmp_path / "models.toml", f'[defaults]\nkeep_alive = "1m"\n{ONE}')
    assert watch.changed()
    assert watch.change == "model changed: a"
