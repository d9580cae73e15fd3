"""Popular clients, each as the real package against real processes. Their programs are in tests/clients."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import lacking
from tests.documents import blocks, curl_lines
from tests.e2e.harness import Stack, eventually, standalone_stack
from tests.ports import free_port
from workers.loading.model_spec import BUILTIN

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "tests" / "clients"
VENV = Path(sys.prefix)
KEY = "sk-0123456789abcdef0123456789abcdef"  # LiteLLM refuses a weaker key
LITELLM_KEYS = {"LITELLM_MASTER_KEY": KEY, "OPENAI_API_KEY": "none"}
SCRIPTED = '"scripted"'  # a command with this is for the slow scripted engine
OLD, MANY, AIPERF = (VENV / name / "bin" for name in ("openai-1", "clients", "aiperf"))


def require(path: Path) -> None:
    if not path.exists():
        lacking(f"{path}, which `make clients` installs")


def surroundings() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}


def run(command: list[object], more: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a program and return its output. It gets a minimal environment and `more`, so no local setting helps it."""
    require(Path(str(command[0])))
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        env=surroundings() | (more or {}),
        cwd=cwd,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
    return str(done.stdout)


@pytest.mark.parametrize(
    ("python", "version"), [(OLD / "python", "1.60"), (MANY / "python", "2."), (Path(sys.executable), "3.")]
)
def test_openai(builtin: Stack, python: Path, version: str) -> None:
    said = run([python, CLIENTS / "openai_python.py", f"{builtin.base}/v1"])

    assert said.startswith(f"openai {version}")


def test_openai_for_node(builtin: Stack) -> None:
    require(CLIENTS / "node_modules")

    assert run([shutil.which("node"), CLIENTS / "openai_node.js", f"{builtin.base}/v1"])


@pytest.mark.parametrize("name", ["langchain", "llama_index", "instructor", "openai_agents", "pydantic_ai"])
def test_libraries(builtin: Stack, name: str) -> None:
    assert run([MANY / "python", CLIENTS / f"with_{name}.py", f"{builtin.base}/v1"])


def test_vercels_ai_sdk(builtin: Stack) -> None:
    require(CLIENTS / "node_modules" / "ai")

    assert run([shutil.which("node"), CLIENTS / "ai_sdk.js", f"{builtin.base}/v1"])


@pytest.mark.long
@pytest.mark.timeout(300)
def test_langchains_standard_tests(builtin: Stack) -> None:
    how = ["-q", "--noconftest", "-c", os.devnull, "-o", "asyncio_mode=auto", "-p", "no:cacheprovider"]
    where = {"PENSTOCK_BASE": f"{builtin.base}/v1"}
    said = run([MANY / "python", "-m", "pytest", *how, CLIENTS / "langchain_standard.py"], more=where)

    assert int(re.findall(r"(\d+) passed", said)[0]) >= 70, said


@pytest.fixture
def litellm_proxy(builtin: Stack, tmp_path: Path) -> Iterator[str]:
    """Start LiteLLM's proxy in front of Penstock, configured as the documents say."""
    require(MANY / "litellm")
    port, log = free_port(), tmp_path / "litellm.log"
    (config,) = blocks(ROOT / "docs" / "migrate.md", "yaml")
    (tmp_path / "litellm.yaml").write_text(config.replace("http://127.0.0.1:8000", builtin.base))
    command = [
        str(MANY / "litellm"),
        "--config",
        str(tmp_path / "litellm.yaml"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=surroundings() | LITELLM_KEYS)
    try:
        base = f"http://127.0.0.1:{port}"
        eventually("LiteLLM's proxy is up", lambda: answers(f"{base}/health/liveliness", process), seconds=90)
        yield base
    finally:
        process.terminate()
        process.wait()


def answers(url: str, process: "subprocess.Popen[bytes]") -> bool:
    assert process.poll() is None, "it ended"
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.timeout(300)
def test_litellm_and_its_proxy(builtin: Stack, litellm_proxy: str) -> None:
    assert run([MANY / "python", CLIENTS / "with_litellm.py", f"{builtin.base}/v1", litellm_proxy, KEY])


def test_lm_evaluation_harness(builtin: Stack, tmp_path: Path) -> None:
    assert run([MANY / "python", CLIENTS / "with_lm_eval.py", f"{builtin.base}/v1", tmp_path, BUILTIN])


@pytest.mark.timeout(300)
def test_aiperf(builtin: Stack, tmp_path: Path) -> None:
    """AIPerf streams and reads the usage that it asks for."""
    load = ["--request-count", 12, "--concurrency", 4, "--synthetic-input-tokens-mean", 20, "--output-tokens-mean", 16]
    where = ["--model", "penstock-tiny", "--url", builtin.base, "--tokenizer", BUILTIN, "--endpoint-type", "chat"]
    told = ["--streaming", "--artifact-dir", tmp_path / "out", "--ui", "none"]
    run([AIPERF / "aiperf", "profile", *where, *load, *told], cwd=tmp_path)

    found = json.loads(next((tmp_path / "out").rglob("profile_export_aiperf.json")).read_text())
    assert found["request_count"]["avg"] == 12
    assert found["error_summary"] == []
    assert found["time_to_first_token"]["avg"] > 0


@pytest.mark.long
@pytest.mark.timeout(600)
def test_schemathesis_finds_no_server_error(tmp_path: Path) -> None:
    where = {"SCHEMATHESIS_HOOKS": "schemathesis_hooks", "PYTHONPATH": str(CLIENTS)}
    how = ["--checks", "not_a_server_error", "--phases", "examples,fuzzing", "--max-examples", 40]
    shown = ["--seed", 1, "--continue-on-failure", "--warnings", "off", "--no-color"]
    with standalone_stack(tmp_path, "scripted", scripted_step_ms=1, admin_key="secret") as stack:
        known = ["--header", "Authorization: Bearer secret", "--request-timeout", 30]
        said = run([MANY / "st", "run", f"{stack.base}/openapi.json", *how, *known, *shown], more=where, cwd=tmp_path)

    assert sum(map(int, re.findall(r"(\d+) generated", said))) > 1500, said


def test_the_curl_lines_of_the_documents(builtin: Stack, tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 60, "ignore_eos": True}
    job = builtin.post({"model": "penstock-tiny", **long}).headers["x-penstock-job-id"]
    lines = [line for line in curl_lines() if SCRIPTED not in line]
    assert len(lines) >= 5
    for line in lines:
        command = re.sub("http://(localhost|127.0.0.1):8000", builtin.base, line).replace("curl ", "curl -sSf ", 1)
        command = command.replace("example.com", "1.1.1.1")  # the name is looked up when the webhook is created
        assert run([shutil.which("bash"), "-c", command], more={"JOB": job}, cwd=tmp_path), line


def test_a_worker_is_killed_as_the_readme_says(scripted: Stack, tmp_path: Path) -> None:
    (ask,) = [line for line in curl_lines() if SCRIPTED in line]
    (kill,) = re.findall(r"^\$ (kill .*)$", "\n".join(blocks(ROOT / "README.md", "console")), re.MULTILINE)
    body = json.loads(re.findall(r"-d '(.*)'", ask)[0])
    undisturbed = scripted.post(body | {"stream": False, "max_tokens": 200}).json()["choices"][0]["message"]["content"]
    with standalone_stack(tmp_path, "scripted", workers=2, scripted_step_ms=50, scripted_tokens=200) as stack:
        command = ["bash", "-c", ask.replace("http://127.0.0.1:8000", stack.base)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as stream:
            assert stream.stdout
            began = [stream.stdout.readline() for _ in range(20)]
            path = f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"
            subprocess.run(["bash", "-c", kill], env=stack.environment | {"PATH": path}, check=True, timeout=30)
            rest = stream.stdout.readlines()
        *parts, done = [line[len("data: ") :].strip() for line in [*began, *rest] if line.startswith("data: ")]
        frames = [json.loads(part) for part in parts]
        claims = stack.redis.hget(f"rq:job:{frames[0]['id']}", "attempt")
        (dead,) = [worker.popen for worker in stack.workers if worker.popen.poll() is not None]

    assert (stream.returncode, dead.returncode) == (0, -signal.SIGKILL)
    assert claims == b"2"
    assert done == "[DONE]"
    deltas = [choice["delta"] for frame in frames for choice in frame["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == undisturbed
