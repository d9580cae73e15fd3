"""Writes `helm/values.schema.json` from values.yaml (types and comments) and Settings: `python -m tools.values_schema`."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from shared.models_file.tables import json_schema
from shared.settings import Settings

CHART = Path(__file__).parents[1] / "helm"
KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z][\w]*):(?P<value>.*)$")
COMMENT = re.compile(r"^ *# ?(?P<text>.*)$")

# Maps and lists whose content is Kubernetes' own or the user's, so their items are not checked.
OWN = {
    "resources",
    "nodeSelector",
    "affinity",
    "annotations",
    "labels",
    "podAnnotations",
    "podLabels",
    "kedaNamespace",
    "monitoringNamespace",
    "ingressNamespaces",
    "shards",
}
CHOICES = {
    "image.pullPolicy": ["Always", "IfNotPresent", "Never"],
    "auth.keys": ["required", "off"],
    "modelDefaults.autoscaling.type": ["keda", "cpu"],
    "modelDefaults.autoscaling.trigger": ["admin", "prometheus", "redis-streams"],
    "api.service.type": ["ClusterIP", "NodePort", "LoadBalancer"],
}
DIGEST = "^(|sha256:[0-9a-f]{64})$"
REDIS_URL = r"rediss?(\+sentinel)?://.*"
PATTERNS = {
    "image.apiDigest": DIGEST,
    "image.workerDigest": DIGEST,
    "redis.password": "^[A-Za-z0-9._~-]*$",  # the password becomes part of a URL
    "externalRedis.url": f"^(|{REDIS_URL})$",
}
SHARDS = {
    "additionalProperties": {
        "type": "object",
        "additionalProperties": False,
        "minProperties": 1,
        "properties": {
            "url": {"type": "string", "pattern": f"^{REDIS_URL}$"},
            "existingSecret": {"type": "string", "minLength": 1},
            "existingSecretKey": {"type": "string", "minLength": 1},
        },
    }
}
MODEL_NAME = "^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$"
NEEDED = [{"required": ["source"]}, {"required": ["file"]}]
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def comments(text: str) -> dict[str, str]:
    """Map each key's path to the comment above the key."""
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines():
        if comment := COMMENT.match(line):
            above.append(comment["text"])
        elif key := KEY.match(line):
            path = [(indent, name) for indent, name in path if indent < len(key["indent"])]
            path.append((len(key["indent"]), key["key"]))
            if above:
                found[".".join(name for _, name in path)] = " ".join(above)
            above = []
        else:
            above = []
    return found


def settings_schema() -> dict[str, Any]:
    made = Settings.model_json_schema()["properties"]
    known = {
        name: {key: value for key, value in field.items() if key != "title"}
        for name, field in sorted(made.items())
        if name not in ("redis_url", "shard_urls")
    }
    return {"type": "object", "additionalProperties": False, "properties": known}


def models_file_schema() -> dict[str, Any]:
    """Return the definitions of a models file by which a model's `file` is checked."""
    text = json.dumps(json_schema()["$defs"]).replace("#/$defs/", "#/definitions/")
    made: dict[str, Any] = json.loads(text)
    return {name: made[name] for name in ("Model", "Load", "Price", "Recommended", "Upstream")}


def schema_of(value: Any, path: str, told: dict[str, str]) -> dict[str, Any]:
    name = path.rpartition(".")[2]
    about = {"description": told[path]} if path in told else {}
    if name == "settings":
        return {**about, "$ref": "#/definitions/settings"}
    if name == "file":
        return {**about, "$ref": "#/definitions/Model"}
    if name in ("aliases", "adapters"):
        return {**about, "$ref": f"#/definitions/Model/properties/{name}"}
    if isinstance(value, dict):
        if name in OWN:
            return {**about, "type": "object", **(SHARDS if name == "shards" else {})}
        parts = {key: schema_of(part, f"{path}.{key}" if path else key, told) for key, part in value.items()}
        return {**about, "type": "object", "additionalProperties": False, "properties": parts}
    if isinstance(value, list):
        return {**about, "type": "array"}
    chosen: dict[str, Any] = {"enum": CHOICES[path]} if path in CHOICES else {"type": TYPES[type(value)]}
    if path in PATTERNS:
        chosen["pattern"] = PATTERNS[path]
    if isinstance(value, int) and not isinstance(value, bool):
        chosen["minimum"] = 0
    return {**about, **chosen}


def schema() -> dict[str, Any]:
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    values, told = yaml.safe_load(text), comments(text)
    made = schema_of(values, "", told)
    defaults = made["properties"]["modelDefaults"]
    model = {
        "name": {"type": "string", "pattern": MODEL_NAME, "description": "What clients call it."},
        "source": {"type": "string", "minLength": 1, "description": told["models.source"]},
    }
    made["properties"]["models"] = {
        "type": "array",
        "minItems": 1,
        "description": told["models"],
        "items": {**defaults, "properties": model | defaults["properties"], "required": ["name"], "anyOf": NEEDED},
    }
    made["properties"]["global"] = {"type": "object", "description": "Helm's own, for charts that hold this one."}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Penstock",
        **made,
        "definitions": {"settings": settings_schema(), **models_file_schema()},
    }


if __name__ == "__main__":
    (CHART / "values.schema.json").write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")
