"""Errors of the chat that is made of a response name its parameters as the response does."""

import re

SENT_AS = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}


def as_sent(message: str, param: str | None) -> tuple[str, str | None]:
    """Return the message and the parameter of an error with the names that the client of a response sent."""
    name, _, rest = (param or "").partition(".")
    if name not in SENT_AS:
        return message, param
    sent = SENT_AS[name] + (f".{rest}" if rest else "")
    said = re.sub(rf"(the|your) {name}\b", rf"\1 {SENT_AS[name]}", message)
    return said.replace(f"'{param}'", f"'{sent}'").replace(f"'{name}'", f"'{SENT_AS[name]}'"), sent
