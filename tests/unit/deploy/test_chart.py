"""The chart renders valid objects for every way to use it, and its files agree with the code."""

import json
import re
import subprocess
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.domain.events import REQUEST_FAULTS
from shared.models_file.reading import parse
from shared.observability.metrics import ApiMetrics, WorkerMetrics
from tests.conftest import ROOT, lacking
from tools.dashboard import dashboard
from tools.release import Release, pack_chart
from tools.values_schema import schema

CHART = ROOT / "helm"
CASES = ["defaults", *sorted(path.name for path in (CHART / "ci").iterdir())]
KUBERNETES = "1.33"
CUSTOM_TYPES = {
    "HTTPRoute": "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1",
    "PodMonitor": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
    "PrometheusRule": "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1",
    "ScaledObject": "@kubernetes-models/keda/keda.sh/v1alpha1",
    "TriggerAuthentication": "@kubernetes-models/keda/keda.sh/v1alpha1",
}
CUSTOM = set(CUSTOM_TYPES)
PACKAGES = ROOT / "tests" / "clients" / "node_modules"


@pytest.fixture(scope="module")
def helm() -> Any:
    try:
        import helm_python
    except ImportError:
        lacking("helm-python-sdk: pip install '.[chart]'")
    return helm_python


def values_of(case: str) -> dict[str, Any]:
    made: dict[str, Any] = {} if case == "defaults" else yaml.safe_load((CHART / "ci" / case).read_text())
    return made


def rendered(helm: Any, values: dict[str, Any]) -> list[dict[str, Any]]:
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name="rel", namespace="ns")
    texts = [text for path, text in files.items() if not path.endswith(".txt")]
    return [made for text in texts for made in yaml.safe_load_all(text) if made]


def of_kind(objects: list[dict[str, Any]], *kinds: str) -> dict[str, dict[str, Any]]:
    return {made["metadata"]["name"]: made for made in objects if made["kind"] in kinds}


def pods(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for made in objects:
        if made["kind"] == "Pod":
            yield made["metadata"]["name"], made["spec"]
        elif made["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield made["metadata"]["name"], made["spec"]["template"]["spec"]


@pytest.mark.parametrize("case", CASES)
def test_helm_and_kubernetes_find_nothing_wrong(helm: Any, case: str) -> None:
    import kubernetes_validate

    told = helm.lint(str(CHART), values=values_of(case), strict=True, kube_version=f"v{KUBERNETES}.0")
    assert [message for message in told["messages"] if message["severity"] >= 2] == []
    for made in rendered(helm, values_of(case)):
        if made["kind"] not in CUSTOM:
            kubernetes_validate.validate(made, KUBERNETES, strict=True)


def test_keda_gateways_and_prometheus_operator_find_nothing_wrong(helm: Any, tmp_path: Path) -> None:
    made = [each for case in CASES for each in rendered(helm, values_of(case)) if each["kind"] in CUSTOM]

    assert {each["kind"] for each in made} == CUSTOM
    assert checked_by_their_types(made, tmp_path) == ""


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("ScaledObject", {"minReplicas": 1}, "minReplicas"),
        ("ScaledObject", {"triggers": [{"type": "redis", "metadata": {"port": 1}}]}, "number"),
        ("PodMonitor", {"podMetricsEndpoints": [{"interval": "often"}]}, "interval"),
    ],
)
def test_a_mistake_in_a_custom_object_is_found(
    helm: Any, tmp_path: Path, kind: str, changes: dict[str, Any], named: str
) -> None:
    first = next(each for each in rendered(helm, values_of("everything.yaml")) if each["kind"] == kind)

    assert named in checked_by_their_types([first | {"spec": first["spec"] | changes}], tmp_path)


def checked_by_their_types(made: list[dict[str, Any]], folder: Path) -> str:
    """Return the unknown fields, wrong types and wrong values that TypeScript and the CRDs' patterns find."""
    if not (PACKAGES / "typescript").exists():
        lacking("TypeScript, which `make clients` installs")
    (folder / "node_modules").symlink_to(PACKAGES)
    (folder / "package.json").write_text('{"type": "module"}')
    lines = [f"import {{ I{kind} }} from '{module}';" for kind, module in sorted(CUSTOM_TYPES.items())]
    lines += [f"const _{at}: I{each['kind']} = {json.dumps(each)};" for at, each in enumerate(made)]
    (folder / "objects.ts").write_text("\n".join(lines))
    compiler = ["node", str(PACKAGES / "typescript" / "bin" / "tsc"), "--noEmit", "--strict", "--skipLibCheck"]
    modules = ["--module", "nodenext", "--moduleResolution", "nodenext", "objects.ts"]
    typed = subprocess.run([*compiler, *modules], cwd=folder, capture_output=True, text=True)
    script = PACKAGES.parent / "kubernetes_objects.js"
    valued = subprocess.run(["node", str(script)], input=json.dumps(made), capture_output=True, text=True)
    return typed.stdout + valued.stderr


@pytest.mark.parametrize("case", CASES)
def test_every_pod_is_as_restricted_as_kubernetes_asks_for(helm: Any, case: str) -> None:
    seen = 0
    for name, pod in pods(rendered(helm, values_of(case))):
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert ":" in container["image"], name
            assert container["resources"]["requests"], name
            seen += 1
    assert seen >= 3


def test_images_are_named_by_their_digests_where_those_are_given(helm: Any) -> None:
    api, worker = (f"sha256:{digit * 64}" for digit in "ab")
    model = {"name": "m", "source": "org/m", "cache": {"size": "1Gi", "preload": True}}
    values = {"image": {"tag": "1.2.3", "apiDigest": api, "workerDigest": worker}, "models": [model]}

    images = {container["image"] for _, pod in pods(rendered(helm, values)) for container in pod["containers"]}

    assert {name for name in images if "penstock" in name} == {
        f"penstock-api:1.2.3@{api}",
        f"penstock-worker:1.2.3@{worker}",
    }


def test_who_scales_alone_says_how_many(helm: Any) -> None:
    made = rendered(helm, values_of("everything.yaml"))

    workers = {name: each for name, each in of_kind(made, "Deployment").items() if not name.endswith("-api")}
    scaled = {each["spec"]["scaleTargetRef"]["name"] for each in of_kind(made, "ScaledObject").values()}
    scaled |= {each["spec"]["scaleTargetRef"]["name"] for each in of_kind(made, "HorizontalPodAutoscaler").values()}
    assert len(workers) == 4
    assert {name for name, each in of_kind(made, "Deployment").items() if "replicas" not in each["spec"]} == scaled


def test_a_worker_has_time_to_hand_over_and_its_gpu(helm: Any) -> None:
    made = of_kind(rendered(helm, values_of("everything.yaml") | {"worker": {"drainSeconds": 30}}), "Deployment")
    pod = next(each for name, each in made.items() if "qwen" in name)["spec"]["template"]["spec"]
    (worker,) = pod["containers"]

    assert pod["terminationGracePeriodSeconds"] == 45
    environment = {each["name"]: each.get("value") for each in worker["env"]}
    assert environment["PENSTOCK_DRAIN_S"] == "30"
    assert environment["PENSTOCK_SEQUENCES_MAX"] == "64"
    assert environment["PENSTOCK_QUEUE_JOBS_MAX"] == "100000"
    assert environment["PENSTOCK_PREFIX_CACHE"] == "true"
    assert worker["args"][:3] == ["worker", "--model", "Qwen/Qwen2.5-7B-Instruct,gpt-4o-mini=Qwen/Qwen2.5-7B-Instruct"]
    assert worker["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert worker["resources"]["requests"]["nvidia.com/gpu"] == 1


def test_what_a_site_needs_beside_reaches_each_process(helm: Any) -> None:
    values = values_of("everything.yaml")
    pods = {
        f"{each['kind']} {each['metadata']['name']}": each["spec"]["template"]["spec"]
        for each in rendered(helm, values)
        if each["kind"] in ("Deployment", "Job")
    }
    assert len(pods) == 6

    for about, pod in pods.items():
        (container,) = pod["containers"]
        assert values["extraEnv"][0] in container["env"], about
        assert values["extraVolumeMounts"][0] in container["volumeMounts"], about
        assert values["extraVolumes"][0] in pod["volumes"], about


def test_what_a_model_needs_beside_is_a_models_file_of_its_own(helm: Any) -> None:
    made = rendered(helm, values_of("models-file.yaml"))
    maps = of_kind(made, "ConfigMap")
    files = {name: each["data"]["models.toml"] for name, each in maps.items() if "models.toml" in each["data"]}
    workers = of_kind(made, "Deployment")

    openai, large = (parse(text.encode(), Path("models.toml")).models for text in files.values())
    assert [each.model_dump(exclude_unset=True) for each in openai["gpt-4o"].upstreams] == [
        {"url": "https://api.openai.com/v1", "key": "${env:OPENAI_API_KEY}", "requests_per_minute": 500}
    ]
    assert (large["org/large"].engine, large["org/large"].source) == ("vllm", "org/large")
    assert large["org/large"].options == {"tensor_parallel_size": 2, "note": 'a<b "c"', "enforce_eager": False}
    assert (large["org/large"].aliases, large["org/large"].adapters) == (["l"], {"sql": "org/sql"})
    assert large["org/large"].settings == {"prefix_cache": False}
    for name in files:
        (container,) = workers[name]["spec"]["template"]["spec"]["containers"]
        assert container["args"] == ["worker", "--models", "/etc/penstock/models.toml"]
        assert {"name": "models-file", "mountPath": "/etc/penstock", "readOnly": True} in container["volumeMounts"]


def test_another_models_file_is_another_pod(helm: Any) -> None:
    def annotations(temperature: float) -> dict[str, str]:
        file = {"recommended": {"temperature": temperature}}
        made = of_kind(rendered(helm, {"models": [{"name": "a", "source": "b", "file": file}]}), "Deployment")
        found: dict[str, str] = made["rel-penstock-a"]["spec"]["template"]["metadata"]["annotations"]
        return found

    assert annotations(0.5) == annotations(0.5) != annotations(0.6)


def test_secrets_are_in_secrets_only(helm: Any) -> None:
    values = values_of("everything.yaml") | {"redis": {"password": "wordpass"}}
    values["auth"] = {"adminKey": "adminpass", "hfToken": "hubpass"}
    others = [made for made in rendered(helm, values) if made["kind"] != "Secret"]

    for word in ("wordpass", "adminpass", "hubpass"):
        assert word not in json.dumps(others)


def test_keda_asks_for_all_names_of_a_model(helm: Any) -> None:
    scaled = of_kind(rendered(helm, values_of("everything.yaml")), "ScaledObject")
    (trigger,) = next(each for name, each in scaled.items() if "qwen" in name)["spec"]["triggers"]

    assert trigger["metadata"]["url"] == (
        "http://rel-penstock-api.ns.svc:80/admin/demand?model=Qwen%2FQwen2.5-7B-Instruct&model=gpt-4o-mini&model=sql"
    )
    assert trigger["metadata"]["valueLocation"] == "workers_wanted"


def test_workers_are_at_their_shard_and_the_api_knows_each(helm: Any) -> None:
    made = dict(pods(rendered(helm, values_of("external-redis.yaml"))))
    urls = {
        name: {each["name"]: each.get("value", each.get("valueFrom")) for each in pod["containers"][0]["env"]}
        for name, pod in made.items()
    }
    far = {"secretKeyRef": {"name": "redis-far", "key": "address"}}
    (api,) = [found for name, found in urls.items() if "PENSTOCK_SHARD_URLS" in found]

    assert [found["PENSTOCK_REDIS_URL"] for name, found in urls.items() if name.endswith("-other")] == [far]
    assert [found["PENSTOCK_REDIS_URL"] for name, found in urls.items() if name.endswith("-third")] == [
        "rediss://near:6379/0"
    ]
    assert (api["SHARD_0"], api["SHARD_1"], api["PENSTOCK_SHARD_URLS"]) == (
        far,
        "rediss://near:6379/0",
        "$(SHARD_0) $(SHARD_1)",
    )


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"modles": []}, "modles"),
        ({"models": []}, "models"),
        ({"models": [{"name": "a b", "source": "builtin"}]}, "name"),
        ({"models": [{"name": "a"}]}, "source"),
        ({"models": [{"name": "a", "source": "b", "aliases": ["c d"]}]}, "aliases"),
        ({"models": [{"name": "a", "source": "b", "file": {"enigne": "vllm"}}]}, "enigne"),
        ({"models": [{"name": "a", "source": "b", "file": {"recommended": {"temperature": 3}}}]}, "temperature"),
        ({"modelDefaults": {"file": {"upstreams": [{"uri": "http://b/v1"}]}}}, "uri"),
        ({"settings": {"queue_job_max": 3}}, "queue_job_max"),
        ({"settings": {"queue_jobs_max": 0}}, "queue_jobs_max"),
        ({"models": [{"name": "a", "source": "b", "autoscaling": {"trigger": "lag"}}]}, "trigger"),
        ({"auth": {"keys": False}}, "keys"),
        ({"image": {"apiDigest": "1.2.3"}}, "apiDigest"),
    ],
)
def test_a_mistake_in_the_values_is_refused_by_name(helm: Any, values: dict[str, Any], named: str) -> None:
    with helm.Chart.load(str(CHART)) as chart, pytest.raises(Exception, match=named):
        chart.validate_schema(values)


def test_what_cannot_work_is_refused(helm: Any) -> None:
    model = {"name": "a", "source": "b"}
    for values, named in (
        ({"redis": {"enabled": False}}, "externalRedis"),
        ({"models": [model, model]}, "two have the name"),
        ({"models": [{"name": "a", "file": {"pin": True}}]}, "a: it needs a source, or upstreams or run in file"),
        ({"models": [model | {"cache": {"preload": True}}]}, "preload"),
        ({"models": [model | {"autoscaling": {"enabled": True}}]}, "adminKey"),
        ({"models": [model | {"shard": "far"}]}, "shard far is not in externalRedis.shards"),
        ({"externalRedis": {"shards": {"far": {"existingSecretKey": "x"}}}}, "externalRedis.shards.far"),
    ):
        with pytest.raises(Exception, match=named):
            rendered(helm, values)


def test_the_schema_is_made_of_the_values_and_the_settings() -> None:
    assert json.loads((CHART / "values.schema.json").read_text()) == schema(), "python -m tools.values_schema"


def test_chart_and_package_are_of_one_release() -> None:
    project = tomllib.loads((CHART.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))

    assert chart["version"] == chart["appVersion"] == project["version"]
    assert f"## [{project['version']}]" in (CHART.parent / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_archive_of_a_release_is_what_helm_would_pack(helm: Any, tmp_path: Path) -> None:
    ours = pack_chart(Release(source=CHART.parent, dist=tmp_path, version="1.2.3", epoch=0))
    theirs = helm.package(str(CHART), destination=str(tmp_path / "theirs"))

    with tarfile.open(ours) as one, tarfile.open(theirs) as other:
        # Helm rewrites Chart.yaml in an order of its own.
        names = [name for name in one.getnames() if not name.endswith("Chart.yaml")]
        assert sorted(one.getnames()) == sorted(other.getnames())
        assert [name for name in names if content(one, name) != content(other, name)] == []
    with helm.Chart.load(str(ours)) as packed, helm.Chart.load(str(CHART)) as chart:
        values = {"redis": {"password": "not-at-random"}}
        assert packed.render(values, name="rel", namespace="ns") == chart.render(values, name="rel", namespace="ns")


def content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file
    return file.read()


def test_the_dashboard_is_made_of_its_panels() -> None:
    assert json.loads((CHART / "files" / "dashboard.json").read_text()) == dashboard(), "python -m tools.dashboard"


def test_the_alert_on_failing_jobs_leaves_wrong_requests_out() -> None:
    rules = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"][0]["rules"]
    (fails,) = [rule for rule in rules if rule["alert"] == "PenstockJobsFail"]

    assert f'code=~"{"|".join(sorted(REQUEST_FAULTS))}"' in fails["expr"]


def test_dashboard_and_alerts_ask_for_metrics_that_there_are() -> None:
    pages = ApiMetrics().page().decode() + WorkerMetrics().page().decode()
    known = set(re.findall(r"^# TYPE (\S+)", pages, re.MULTILINE))
    known |= {name + end for name in set(known) for end in ("_bucket", "_sum", "_count")}
    asked = {
        name
        for path in ("dashboard.json", "alerts.yaml")
        for name in re.findall(r"penstock_\w+", (CHART / "files" / path).read_text())
    }

    assert len(asked) > 20
    assert asked <= known


def test_the_world_reaches_nothing_but_what_is_public(helm: Any) -> None:
    exposed: dict[str, Any] = {
        "ingress": {"enabled": True},
        "gateway": {"enabled": True, "parentRefs": [{"name": "gate"}]},
        "publicPaths": ["/v1"],
    }
    for values, paths in ((exposed, ["/v1"]), ({**exposed, "publicPaths": None}, ["/v1", "/dashboard/billing"])):
        made = rendered(helm, {name: value for name, value in values.items() if value is not None})
        (ingress,) = of_kind(made, "Ingress").values()
        (route,) = of_kind(made, "HTTPRoute").values()

        (rule,) = ingress["spec"]["rules"]
        assert [each["path"] for each in rule["http"]["paths"]] == paths
        (rule,) = route["spec"]["rules"]
        assert [each["path"] for each in rule["matches"]] == [{"type": "PathPrefix", "value": path} for path in paths]
