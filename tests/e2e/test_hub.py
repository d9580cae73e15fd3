"""A model by its Hugging Face id, from a stand-in of the hub with the few routes that loading needs."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from workers.loading.model_spec import BUILTIN

REPOSITORY = "penstock/tiny"
COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """Serves the built-in model's folder as `penstock/tiny` at one commit. It stands in for both hubs, whose routes do
    not overlap."""

    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path, _, query = unquote(self.path).partition("?")
        type(self).asked.append(path)
        model = f"/api/v1/models/{REPOSITORY}"
        if path.startswith(f"/api/models/{REPOSITORY}"):
            files = [_listed(file) for file in BUILTIN.iterdir()]
            info = {"id": REPOSITORY, "sha": COMMIT, "siblings": files, "tags": [], "private": False}
            self._send(json.dumps(files if "/tree/" in path else info).encode(), body=body)
        elif path == f"{model}/repo/files":
            files = [_modelscope(file) for file in BUILTIN.iterdir()]
            self._send(json.dumps({"Code": 200, "Success": True, "Data": {"Files": files}}).encode(), body=body)
        elif path == f"{model}/repo":
            self._send((BUILTIN / query.partition("FilePath=")[2]).read_bytes(), body=body)
        elif path.startswith(f"/{REPOSITORY}/resolve/") and (file := BUILTIN / path.rsplit("/", 1)[1]).is_file():
            self._send(file.read_bytes(), body=body)
        else:
            self.send_response(404)
            self.send_header("x-error-code", "EntryNotFound")
            self.send_header("content-length", "0")
            self.end_headers()

    def _send(self, data: bytes, *, body: bool) -> None:
        self.send_response(200)
        self.send_header("x-repo-commit", COMMIT)
        self.send_header("etag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _listed(file: Path) -> dict[str, object]:
    name = file.name
    return {"rfilename": name, "path": name, "type": "file", "size": file.stat().st_size, "oid": "0" * 40}


def _modelscope(file: Path) -> dict[str, object]:
    data = file.read_bytes()
    named = {"Name": file.name, "Path": file.name, "Type": "blob", "Revision": COMMIT}
    return named | {"Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()}


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["huggingface", "modelscope"])
def test_a_hub_id_is_downloaded_and_answers(hub: str, tmp_path: Path, name: str) -> None:
    script = f"""
from shared.settings import load_settings
from tools.tiny_model.evaluate import answers, plain
from workers.engines.native.loader import load_engine
from workers.loading.model_spec import parse_specs
engine = load_engine(parse_specs(["{REPOSITORY}"])[0], load_settings())
print(engine.kind, answers(engine, [plain("What is 2 + 2?")]))
"""
    places = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    places |= {"MODELSCOPE_ENDPOINT": hub, "MODELSCOPE_CACHE": str(tmp_path), "PENSTOCK_HUB": name}

    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **places}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "batched ['2 + 2 = 4.']"
    fetched = f"/api/v1/models/{REPOSITORY}/repo" if name == "modelscope" else "/model.safetensors"
    assert any(path.endswith(fetched) for path in Hub.asked)


@pytest.mark.parametrize("name", ["huggingface", "modelscope"])
def test_a_model_is_pulled_with_its_progress_and_removed_again(hub: str, tmp_path: Path, name: str) -> None:
    places = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    places |= {"MODELSCOPE_ENDPOINT": hub, "MODELSCOPE_CACHE": str(tmp_path), "PENSTOCK_HUB": name}

    def models(*arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli", "models", *arguments]
        environment = {
            **os.environ,
            **places,
            "PENSTOCK_REDIS_URL": "redis://127.0.0.1:1",
            "PENSTOCK_REDIS_WAIT_S": "0",
        }
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, input=answer, timeout=60
        )

    file = tmp_path / "models.toml"
    far = '[models.far]\nupstreams = [{url = "http://localhost/v1"}]\n'
    file.write_text(f'[models.tiny]\nsource = "{REPOSITORY}"\n{far}')
    pulled = models("pull", "tiny", "--models", str(file))
    folder = Path(pulled.stdout.strip())
    kept, removed = models("rm", REPOSITORY, answer="n\n"), models("rm", REPOSITORY, answer="y\n")

    assert pulled.returncode == 0, pulled.stderr
    size = sum(file.stat().st_size for file in BUILTIN.iterdir() if file.suffix in (".json", ".safetensors", ".jinja"))
    last = pulled.stderr.splitlines()[-1]
    assert last == f"100 %: {size / 2**20:.1f} MiB of {size / 2**20:.1f} MiB"
    assert (kept.returncode, removed.returncode) == (1, 0), removed.stderr
    assert f"{REPOSITORY} removed" in removed.stdout
    assert not folder.exists()
    assert f"{REPOSITORY} was not fetched" in models("rm", REPOSITORY).stderr
    assert "is not the id of a model on a hub" in models("rm", str(BUILTIN)).stderr
    assert "far has no files here: its engine is upstream" in models("pull", "far", "--models", str(file)).stderr
    assert "cannot be fetched" in models("pull", "penstock/nothing").stderr
