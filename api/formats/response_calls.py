"""The calls of tools in a response. A chat knows functions only: custom tools, namespaces and the local shell are
written as functions for the model, and its calls of them become items of their own types."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from shared.domain.events import CallPart

Json = dict[str, Any]
NAME_MAX = 64
FUNCTIONS = "functions"
LOCAL_SHELL = "local_shell"
OWN = ("function", "custom", "namespace", LOCAL_SHELL)  # the types of the tools that the client runs
SHELL = {
    "name": LOCAL_SHELL,
    "description": "Run a command in the shell of the user's machine.",
    "parameters": {
        "type": "object",
        "properties": {
            "command": {"type": "array", "items": {"type": "string"}, "description": "The command and its arguments."},
            "working_directory": {"type": "string", "description": "The folder in which the command runs."},
            "timeout_ms": {"type": "integer", "description": "The time limit in milliseconds."},
        },
        "required": ["command"],
        "additionalProperties": False,
    },
}
# A character of a JSON string that has arrived completely. The first half of a surrogate pair waits for the second.
CHARACTERS = re.compile(
    r'(?:[^"\\]+|\\["\\/bfnrt]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}'
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[0-9a-fA-F]{4}|(?=[^\\]|\\[^u])))*"
)
BEFORE = re.compile(r'\s*\{\s*"input"\s*:\s*"')


class Called(NamedTuple):
    """The item that a call of a chat's function becomes: its type, and the name and namespace of the tool."""

    type: str
    name: str
    namespace: str | None = None


def chat_name(name: str, namespace: str | None = None) -> str:
    """Return the function's name in the chat, which has at most 64 characters. Some clients put the functions without a
    namespace into one that is called `functions`."""
    if not namespace or namespace == FUNCTIONS:
        return name
    space = re.sub(r"[^a-zA-Z0-9_-]", "_", namespace)
    whole = f"{space}{'' if space.endswith('_') else '__'}{name}"
    if len(whole) <= NAME_MAX and space == namespace:
        return whole
    digest = hashlib.sha256(f"{namespace} {name}".encode()).hexdigest()[:8]
    return f"{whole[: NAME_MAX - len(digest) - 1]}_{digest}"


def with_additional(tools: Sequence[Json], items: Sequence[Json]) -> list[Json]:
    """Return the tools of a response, with those that its items add."""
    added = [tool for item in items if item["type"] == "additional_tools" for tool in item["tools"]]
    return [*tools, *added]


def called_by_name(tools: Sequence[Json]) -> dict[str, Called]:
    """Return the tools of a response by their names in the chat."""
    found = {}
    for tool, namespace in _flat(tools):
        kind = {"function": "function_call", "custom": "custom_tool_call"}.get(tool["type"])
        if kind:
            found[chat_name(tool["name"], namespace)] = Called(kind, tool["name"], namespace)
        elif tool["type"] == LOCAL_SHELL:
            found[LOCAL_SHELL] = Called("local_shell_call", LOCAL_SHELL)
    return found


def chat_functions(tools: Sequence[Json]) -> list[Json]:
    """Return the tools as functions of a chat. Hosted tools are none."""
    functions = []
    for tool, namespace in _flat(tools):
        match tool["type"]:
            case "function":
                kept = ("description", "parameters", "strict")
                about = {name: tool[name] for name in kept if tool.get(name) is not None}
                functions.append({"name": chat_name(tool["name"], namespace), **about})
            case "custom":
                functions.append({"name": chat_name(tool["name"], namespace), **_of_text(tool)})
            case "local_shell":
                functions.append(SHELL)
    return [{"type": "function", "function": function} for function in functions]


def grammars_of(tools: Sequence[Json]) -> dict[str, str]:
    """Return the Lark grammars of custom tools by the tools' names in the chat. A regular expression is in the schema
    of its tool."""
    found = {}
    for tool, namespace in _flat(tools):
        form = (tool.get("format") or {}) if tool["type"] == "custom" else {}
        if form.get("syntax") == "lark":
            found[chat_name(tool["name"], namespace)] = form["definition"]
    return found


def hosted(tools: Sequence[Json]) -> list[str]:
    """Return the types of those tools that a server would run, each once."""
    return list(dict.fromkeys(tool["type"] for tool in tools if tool["type"] not in OWN))


def _flat(tools: Sequence[Json]) -> list[tuple[Json, str | None]]:
    """Return each tool with its namespace. What is said of a namespace is said of each of its tools."""
    flat: list[tuple[Json, str | None]] = []
    for tool in tools:
        if tool["type"] != "namespace":
            flat.append((tool, None))
            continue
        about = tool.get("description") or ""
        for each in tool["tools"]:
            description = "\n\n".join(filter(None, [each.get("description"), about]))
            flat.append((each | {"description": description or None}, tool["name"]))
    return flat


def _of_text(tool: Json) -> Json:
    """Return the function of a custom tool: its only argument is the text. A grammar is told to the model, and kept."""
    form = tool.get("format") or {}
    text: Json = {"type": "string"}
    description = tool.get("description") or ""
    strict = {}
    if form.get("type") == "grammar":
        syntax, definition = form["syntax"], form["definition"]
        description += f"\n\nThe input keeps to this {syntax} grammar:\n{definition}"
        text |= {"pattern": f"^(?:{definition})$"} if syntax == "regex" else {}
        strict = {"strict": True}
    parameters = {"type": "object", "properties": {"input": text}, "required": ["input"], "additionalProperties": False}
    return {"description": description.strip() or None, "parameters": parameters, **strict}


class Call(Protocol):
    """A call of a tool, while it grows. `item` is the call as it is now."""

    item: Json

    def feed(self, arguments: str, place: Json) -> list[Json]:
        """Add the next part of the arguments; return the events."""

    def close(self, place: Json) -> list[Json]:
        """Complete the item; return the events."""


def call_of(part: CallPart, called: Mapping[str, Called], *, base: str) -> Call:
    """Return the call that this part begins. `base` ends the item's id."""
    shown = called.get(part.name, Called("function_call", part.name))
    match shown.type:
        case "custom_tool_call":
            return CustomCall(part, shown, base)
        case "local_shell_call":
            return ShellCall(part, base)
    return FunctionCall(part, shown, base)


def _begun(prefix: str, part: CallPart, shown: Called, base: str) -> Json:
    item = {"id": f"{prefix}_{base}", "type": shown.type, "status": "in_progress", "call_id": part.id}
    return item | {"name": shown.name} | ({"namespace": shown.namespace} if shown.namespace else {})


class FunctionCall:
    def __init__(self, part: CallPart, shown: Called, base: str) -> None:
        self.item = _begun("fc", part, shown, base) | {"arguments": ""}

    def feed(self, arguments: str, place: Json) -> list[Json]:
        self.item["arguments"] += arguments
        return [{"type": "response.function_call_arguments.delta", **place, "delta": arguments}]

    def close(self, place: Json) -> list[Json]:
        done = {"name": self.item["name"], "arguments": self.item["arguments"]}
        return [{"type": "response.function_call_arguments.done", **place, **done}]


class CustomCall:
    """A call whose input is the text in the function's only argument. If the model wrote other arguments, those are the
    input as they are."""

    def __init__(self, part: CallPart, shown: Called, base: str) -> None:
        self.item = _begun("ctc", part, shown, base) | {"input": ""}
        self._held = ""  # what is not read yet of the arguments
        self._reads = False  # true within the text and behind it

    def feed(self, arguments: str, place: Json) -> list[Json]:
        self._held += arguments
        if not self._reads and (before := BEFORE.match(self._held)):
            self._held, self._reads = self._held[before.end() :], True
        return self._told(self._next(), place) if self._reads else []

    def close(self, place: Json) -> list[Json]:
        events = [] if self._reads else self._told(self._held, place)
        return [*events, {"type": "response.custom_tool_call_input.done", **place, "input": self.item["input"]}]

    def _next(self) -> str:
        found = CHARACTERS.match(self._held)
        assert found
        self._held = self._held[found.end() :]
        text: str = json.loads(f'"{found[0]}"', strict=False)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def _told(self, text: str, place: Json) -> list[Json]:
        self.item["input"] += text
        return [{"type": "response.custom_tool_call_input.delta", **place, "delta": text}] if text else []


class ShellCall:
    """A call whose command is known when its arguments are complete."""

    def __init__(self, part: CallPart, base: str) -> None:
        begun = _begun("lsh", part, Called("local_shell_call", LOCAL_SHELL), base)
        del begun["name"]
        self.item = begun | {"action": {"type": "exec", "command": [], "env": {}}}
        self._arguments = ""

    def feed(self, arguments: str, place: Json) -> list[Json]:
        self._arguments += arguments
        return []

    def close(self, place: Json) -> list[Json]:
        try:
            asked = json.loads(self._arguments)
            command = [str(word) for word in asked["command"]] if isinstance(asked["command"], list) else []
        except (ValueError, TypeError, KeyError, RecursionError):
            return []
        about = {name: asked[name] for name in ("timeout_ms", "working_directory") if name in asked}
        self.item["action"] |= {"command": command, **about}
        return []
