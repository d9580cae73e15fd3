"""`penstock models check` tells what is wrong in a models file, and what it lacks on this machine."""

import json
from pathlib import Path

from click.testing import CliRunner, Result

from cli.main import main
from shared.models_file.reading import parse, read
from shared.settings import load_settings
from tests.conftest import ROOT
from workers.loading.file_check import lacking

EXAMPLE = ROOT / "models.example.toml"


def warnings(tmp_path: Path, text: str, **environment: str) -> list[str]:
    return [str(each) for each in lacking(parse(text.encode(), tmp_path / "models.toml"), load_settings(), environment)]


def check(path: Path) -> Result:
    return CliRunner().invoke(main, ["models", "check", str(path)])


def test_a_file_that_lacks_nothing_has_no_warnings(tmp_path: Path) -> None:
    assert warnings(tmp_path, '[models.a]\nsource = "builtin"\n[models.b]\nsource = "scripted"\n') == []


def test_the_example_is_right_and_names_its_schema() -> None:
    file = read(EXAMPLE)

    assert list(lacking(file, load_settings(), {})) == []
    assert check(EXAMPLE).output == f"{EXAMPLE}: 2 models, 1 route\n"
    first = EXAMPLE.read_text().splitlines()[0]
    schema = json.loads((ROOT / first.removeprefix("#:schema ")).read_text())
    assert set(schema["properties"]) >= {"root", "default", "host", "defaults", "models", "routes"}


def test_the_example_is_right_with_all_that_it_leaves_out() -> None:
    """Each line that is commented out, and is no sentence, is one of the file."""
    lines = EXAMPLE.read_text().splitlines()[3:]
    text = "\n".join(line.removeprefix("# ") for line in lines)

    file = parse(text.encode(), EXAMPLE)

    assert list(file.models) == ["tiny", "told", "gguf", "large", "gpt-4o"]


def test_sources_that_are_not_there_are_told(tmp_path: Path) -> None:
    found = warnings(tmp_path, '[models.a]\nsource = "./a"\n[models.b]\n[models.c]\nsource = "org/c"\n')

    assert found[0].startswith("line 2: models.a: there is no folder ")
    assert found[1].startswith("line 3: models.b: there is no folder b below root")
    assert len(found) == 2


def test_an_engine_that_is_not_installed_is_told(tmp_path: Path) -> None:
    (found,) = warnings(tmp_path, '[models.a]\nengine = "nowhere.bots:Mine"\n')

    assert found == "line 2: models.a: the engine nowhere.bots:Mine needs the package nowhere, which is not installed"


def test_variables_that_are_not_set_are_told_and_their_contents_are_not(tmp_path: Path) -> None:
    text = (
        '[models.a]\nupstreams = [{url = "http://a/v1", key = "${env:ONE}"}, {url = "http://b/v1", key = "${env:TWO}"}]'
        '\n[models.b]\nrun = "server --port ${PORT} --key ${env:THREE}"\n'
    )

    found = warnings(tmp_path, text, ONE="hidden", THREE=" ")

    assert found == [
        "line 2: models.a: the environment variable TWO is not set",
        "line 4: models.b: the environment variable THREE is not set",
    ]


def test_models_that_cannot_fit_into_the_memory_are_told(tmp_path: Path) -> None:
    one = '[host]\nmemory = "{}MiB"\n[models.a]\nsource = "builtin"\npin = true\n'
    two = one + '[models.b]\nsource = "builtin"\nload = "at_start"\nkeep_alive = "forever"\n'

    (large,) = warnings(tmp_path, one.format(1))
    (both,) = warnings(tmp_path, two.format(8))

    assert large.startswith("line 4: models.a: its weights alone take 6.6MiB, more than host.memory")
    assert both == "line 2: host.memory: 8.0MiB cannot hold at once what is pinned or loaded at the start: a, b"
    assert warnings(tmp_path, two.format(100)) == []


def test_everything_wrong_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text('[models.a]\nsorce = "x"\nkeep_alive = "soon"\n')

    result = check(path)

    assert result.exit_code != 0
    assert f"{path}, line 2: models.a.sorce: there is no such key; did you mean 'source'?" in str(result.exception)
    assert f"{path}, line 3: models.a.keep_alive: it must be a time like 30s" in str(result.exception)


def test_the_schema_is_printed() -> None:
    printed = CliRunner().invoke(main, ["models", "schema"]).output

    assert json.loads(printed) == json.loads((ROOT / "docs/models.schema.json").read_text())
