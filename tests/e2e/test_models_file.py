"""Workers that serve what a models file says."""

from pathlib import Path
from typing import Any

from cli.embedded_redis import EmbeddedRedis
from tests.e2e.harness import Stack, running_stack

FILE = """
[models.small]
source = "scripted"
aliases = ["gpt-4o-mini"]
scripted_tokens = 3
[models.large]
source = "scripted"
scripted_tokens = 9
[models.away]
upstreams = [{url = "http://127.0.0.1:1/v1", key = "${env:NOT_SET_HERE}"}]
"""


def length(stack: Stack, model: str) -> int:
    asked: Any = [{"role": "user", "content": "Count."}]
    usage = stack.client().chat.completions.create(model=model, messages=asked).usage
    assert usage
    return usage.completion_tokens


def test_one_worker_serves_models_of_a_file_each_with_settings_of_its_own(
    tmp_path: Path, own_redis: EmbeddedRedis
) -> None:
    file = tmp_path / "models.toml"
    file.write_text(FILE)
    with running_stack(tmp_path, own_redis, workers=0) as stack:
        stack.add_worker(options=["--models", str(file), "--only", "small,large"])
        stack.wait_ready()

        lengths = {name: length(stack, name) for name in ("gpt-4o-mini", "large")}

        assert [model.id for model in stack.client().models.list()] == ["gpt-4o-mini", "large", "small"]
        assert lengths == {"gpt-4o-mini": 4, "large": 10}  # with the token that ends an answer


def test_a_worker_refuses_a_model_that_its_file_does_not_have(tmp_path: Path, own_redis: EmbeddedRedis) -> None:
    file = tmp_path / "models.toml"
    file.write_text(FILE)
    with running_stack(tmp_path, own_redis, workers=0) as stack:
        refused = stack.add_worker(options=["--models", str(file), "--only", "smal"])

        assert refused.popen.wait(30) == 2
        assert "has no model 'smal'; did you mean 'small'?" in (tmp_path / "worker-1.log").read_text()
