"""The terminal of `penstock up` tells what changes at its host, once."""

from dataclasses import replace
from pathlib import Path

from cli.host_news import HostView, loaded, news
from shared.domain.hosting import Host, HostedModel, HostedState
from shared.models_file.reading import parse

HOST = Host(id="h", hostname="here", machine="m", pid=1, file="/etc/models.toml", file_digest="1")


def model(name: str, state: HostedState, reason: str = "", load_s: float = 0) -> HostedModel:
    return HostedModel(host="h", model=name, state=state, since_s=0, reason=reason, load_s=load_s)


def view(host: Host = HOST, *models: HostedModel) -> HostView:
    return HostView(host=host, models={each.model: each for each in models})


def test_models_of_the_start_are_waited_for_until_each_is_loaded_and_that_is_told_once() -> None:
    file = parse(b'[models.a]\nload = "at_start"\n[models.b]\nload = "at_start"\n[models.c]\n', Path("models.toml"))
    before = view(HOST, model("a", HostedState.LOADING), model("c", HostedState.CONFIGURED))
    waited = before.still_loading(file)
    assert waited == ["a", "b"]

    now = view(HOST, model("a", HostedState.READY, load_s=2.04))

    assert list(loaded(waited, now)) == ["Loaded     a after 2.0 s"]
    assert list(loaded(waited, now)) == []
    assert waited == ["b"]


def test_a_wrong_file_is_told_once_and_so_is_its_mending() -> None:
    wrong = replace(HOST, file_error="models.toml, line 2: no")
    changed = replace(HOST, file_digest="2", file_change="model added: c")

    assert list(news(view(), view(wrong))) == [
        "Wrong      models.toml, line 2: no\n           What was read before holds."
    ]
    assert list(news(view(wrong), view(wrong))) == []
    assert list(news(view(wrong), view())) == ["Read       models.toml again: it is right, and as it was"]
    assert list(news(view(wrong), view(changed))) == ["Read       models.toml again: model added: c"]


def test_a_load_that_failed_is_told_once_for_each_reason() -> None:
    failed = view(HOST, model("a", HostedState.FAILED, "there is no folder"))

    assert list(news(view(), failed)) == ["Failed     a: there is no folder"]
    assert list(news(failed, failed)) == []
    assert list(news(HostView(), failed)) == ["Failed     a: there is no folder"]
