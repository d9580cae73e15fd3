"""The input items of a response: messages, calls of tools and their outputs, reasoning, compactions and references."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from api.schemas.base import Items, Strict
from api.schemas.chat import MESSAGES_MAX, PARTS_MAX
from api.schemas.response_tools import ResponseTools
from api.schemas.tools import NAME, NAMESPACE

ITEMS_MAX = MESSAGES_MAX - 1  # `instructions` is a message, too
LOGPROBS_MAX = 100_000
COMMAND_MAX = 1000
VARIABLES_MAX = 1000


class InputText(Strict):
    type: Literal["input_text", "text"]
    """`input_text`, or its short form `text`."""
    text: str
    """The part's text."""


class InputImage(Strict):
    """An image, for models whose capabilities name images."""

    type: Literal["input_image"]
    """Always `input_image`."""
    image_url: str = Field(min_length=1)
    """The image's URL, which may hold the image itself (`data:`)."""
    detail: Literal["low", "high", "auto", "original"] | None = None
    """The image's level of detail, for a model behind a server that reads it."""
    file_id: None = None
    """Only null is supported."""

    @property
    def text(self) -> str:
        return ""


class InputFile(Strict):
    """A file, for models whose capabilities name files."""

    type: Literal["input_file"]
    """Always `input_file`."""
    file_data: str = Field(min_length=1)
    """The file itself, as a `data:` URL."""
    filename: str | None = Field(None, max_length=1000)
    """The file's name."""
    file_id: None = None
    """Only null is supported."""
    file_url: None = None
    """Only null is supported."""

    @property
    def text(self) -> str:
        return ""


class OutputText(Strict):
    """A part of an earlier answer."""

    type: Literal["output_text"]
    """Always `output_text`."""
    text: str
    """The part's text."""
    annotations: Annotated[list[Any], Items(0)] = Field(default_factory=list)
    """Always empty."""
    logprobs: Annotated[list[Any], Items(LOGPROBS_MAX)] | None = None
    """Accepted from an earlier answer without effect."""


class Refusal(Strict):
    type: Literal["refusal"]
    """Always `refusal`."""
    refusal: str
    """The refusal of an earlier answer."""

    @property
    def text(self) -> str:
        return self.refusal


InputPart = Annotated[InputText | InputImage | InputFile, Field(discriminator="type")]
Part = Annotated[InputText | InputImage | InputFile | OutputText | Refusal, Field(discriminator="type")]


class Item(Strict):
    """The fields that items of earlier answers have beside their content. They are accepted unchanged."""

    id: str | None = Field(None, max_length=256)
    """The item's id in an earlier answer."""
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    """The item's status in an earlier answer."""
    internal_chat_message_metadata_passthrough: Annotated[dict[str, Any], Items(64)] | None = Field(None, exclude=True)
    """Accepted: what Codex notes of its items."""


class MessageItem(Item):
    type: Literal["message"] = "message"
    """Always `message`; it may be left out."""
    role: Literal["user", "assistant", "system", "developer"]
    """The author of the message. `developer` is treated as `system`."""
    content: str | Annotated[list[Part], Items(PARTS_MAX)]
    """The message's text, or its parts."""
    phase: str | None = Field(None, max_length=64)
    """Accepted from an earlier answer without effect."""


class CallItem(Item):
    type: Literal["function_call"]
    """Always `function_call`."""
    call_id: str = Field(min_length=1, max_length=256)
    """The call's id, which its output names."""
    name: str = Field(pattern=NAME)
    """The function's name."""
    namespace: str | None = Field(None, pattern=NAMESPACE)
    """The namespace of the function, if it has one."""
    arguments: str
    """The arguments as JSON, as the model wrote them."""


class CustomCallItem(Item):
    type: Literal["custom_tool_call"]
    """Always `custom_tool_call`."""
    call_id: str = Field(min_length=1, max_length=256)
    """The call's id, which its output names."""
    name: str = Field(pattern=NAME)
    """The tool's name."""
    namespace: str | None = Field(None, pattern=NAMESPACE)
    """The namespace of the tool, if it has one."""
    input: str
    """The text that the model wrote for the tool."""


class ShellAction(Strict):
    type: Literal["exec"]
    """Always `exec`."""
    command: Annotated[list[str], Items(COMMAND_MAX)]
    """The command and its arguments."""
    env: Annotated[dict[str, str], Items(VARIABLES_MAX)] | None = None
    """Environment variables of the command."""
    timeout_ms: int | None = None
    """The time limit of the command."""
    user: str | None = None
    """The user that runs the command."""
    working_directory: str | None = None
    """The folder in which the command runs."""


class ShellCallItem(Item):
    type: Literal["local_shell_call"]
    """Always `local_shell_call`."""
    call_id: str = Field(min_length=1, max_length=256)
    """The call's id, which its output names."""
    action: ShellAction
    """The command that the model asked for."""


class CallOutputItem(Item):
    """The output of a tool that the client ran."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    """`function_call_output`, or `custom_tool_call_output` for a custom tool."""
    call_id: str = Field(min_length=1, max_length=256)
    """The id of the call that this item answers."""
    output: str | Annotated[list[InputPart], Items(PARTS_MAX)]
    """The result of the tool."""


class ShellOutputItem(Item):
    """The output of a local shell. Older clients name the call by `id`, newer ones by `call_id`."""

    type: Literal["local_shell_call_output"]
    """Always `local_shell_call_output`."""
    call_id: str | None = Field(None, min_length=1, max_length=256)
    """The id of the call that this item answers."""
    output: str
    """The result of the command."""

    @model_validator(mode="after")
    def _names_its_call(self) -> "ShellOutputItem":
        if not (self.call_id or self.id):
            raise ValueError("'call_id' is missing")
        self.call_id = self.call_id or self.id
        return self


class ReasoningText(Strict):
    type: Literal["reasoning_text", "summary_text", "text"]
    """`reasoning_text`, or `summary_text` in a summary."""
    text: str
    """The part's text."""


class ReasoningItem(Item):
    type: Literal["reasoning"]
    """Always `reasoning`."""
    summary: Annotated[list[ReasoningText], Items(PARTS_MAX)] = Field(default_factory=list)
    """The summary of an earlier answer's reasoning."""
    content: Annotated[list[ReasoningText], Items(PARTS_MAX)] | None = None
    """The reasoning of an earlier answer."""
    encrypted_content: str | None = None
    """The same as an earlier answer of this API has it. Another server's is refused."""


class CompactionItem(Item):
    """A compaction as `POST /v1/responses/compact` answers it."""

    type: Literal["compaction", "compaction_summary"]
    """Always `compaction`."""
    encrypted_content: str = Field(min_length=1)
    """The compacted conversation. Another server's is refused."""


class CompactionTriggerItem(Strict):
    """Asks for a compaction of the conversation before it, in place of an answer. It must be the last item."""

    type: Literal["compaction_trigger"]
    """Always `compaction_trigger`."""
    id: str | None = Field(None, max_length=256)
    """Accepted without effect."""


class AdditionalToolsItem(Item):
    """Tools that the model may call beside those of the request."""

    type: Literal["additional_tools"]
    """Always `additional_tools`."""
    role: Literal["developer"]
    """Always `developer`."""
    tools: ResponseTools
    """The tools, as in `tools` of the request."""


class ReferenceItem(Strict):
    type: Literal["item_reference"]
    """Always `item_reference`."""
    id: str = Field(min_length=1, max_length=256)
    """The id of an item of a stored response: one of its output, or of its own input."""


InputItem = Annotated[
    MessageItem
    | CallItem
    | CustomCallItem
    | ShellCallItem
    | CallOutputItem
    | ShellOutputItem
    | ReasoningItem
    | CompactionItem
    | CompactionTriggerItem
    | AdditionalToolsItem
    | ReferenceItem,
    Field(discriminator="type"),
]
InputItems = Annotated[list[InputItem], Items(ITEMS_MAX, least=1)]


def typed(items: Any) -> Any:
    """Add the type to items that need none: a message, and a reference by its id alone."""
    return [_typed(item) for item in items[: ITEMS_MAX + 1]] if isinstance(items, list) else items


def _typed(item: Any) -> Any:
    if not isinstance(item, dict) or item.get("type"):
        return item
    if "role" in item:
        return item | {"type": "message"}
    return item | {"type": "item_reference"} if item.keys() <= {"id", "type"} else item
