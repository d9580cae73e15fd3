"""Dialogues in which the built-in model calls tools and answers in JSON. Names of tools and parameters and most values
are drawn or invented anew each time, so that the model learns to copy them."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tools.tiny_model import words
from tools.tiny_model.dialogues import TOPICS, arithmetic, dialogues, fact

Talk = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # messages and tools
Draw = Callable[[Random], Any]

FOUND = "Here is what I found: "


def _invented(rng: Random) -> str:
    return "".join(rng.choices(words.SYLLABLES, k=rng.randint(1, 3))).title()


def _city(rng: Random) -> str:
    return _invented(rng) if rng.random() < 0.5 else rng.choice(words.CAPITALS)[1]


def _person(rng: Random) -> str:
    return _invented(rng) if rng.random() < 0.6 else rng.choice(words.NAMES)


def _word(rng: Random) -> str:
    return rng.choice([*words.SPELLED, *words.TOPICS])


def _words(rng: Random) -> str:
    return " ".join(_word(rng) for _ in range(rng.randint(1, 3)))


def _number(rng: Random) -> int:
    return rng.randint(0, 20) if rng.random() < 0.5 else rng.randint(0, 999)


def _code(rng: Random) -> str:
    return "".join(rng.choices("ABCDEFGHKLMNPRSTUVWXYZ", k=rng.randint(2, 4))) + str(rng.randint(1, 999))


def _language(rng: Random) -> str:
    return rng.choice(["French", "German", "Spanish", "Italian", "Chinese", "Japanese", "Greek", "Polish"])


@dataclass(frozen=True, slots=True)
class Family:
    """A family of tools for one purpose. `keys` holds each value's possible names, its JSON type and its generator; the
    `asks` name the values in this order."""

    names: Sequence[str]
    about: Sequence[str]
    keys: Sequence[tuple[Sequence[str], str, Draw]]
    asks: Sequence[str]


CITY = (("city", "location", "place", "town"), "string", _city)
FAMILIES = [
    Family(
        ("get_weather", "weather", "get_current_weather", "getWeather", "fetch_weather", "weather_in"),
        ("The weather in a city", "Get the weather", "Get current temperature for a given location."),
        [CITY],
        (
            "What is the weather in {0}?",
            "What's the weather like in {0}?",
            "How is the weather in {0} today?",
            "Weather in {0}?",
            "What is the weather like in {0} today?",
            "How warm is it in {0}?",
            "Is it raining in {0}?",
        ),
    ),
    Family(
        ("get_time", "time_in", "current_time", "getTime", "clock"),
        ("The time in a city", "Get the local time"),
        [CITY],
        ("What time is it in {0}?", "Tell me the time in {0}.", "What is the time in {0}?"),
    ),
    Family(
        ("add", "sum", "add_numbers", "plus"),
        ("Add two numbers", "Add a and b."),
        [(("a", "x", "first"), "integer", _number), (("b", "y", "second"), "integer", _number)],
        ("Add {0} and {1}.", "What is {0} plus {1}?", "What is {0} + {1}?", "Use the tool to add {0} and {1}."),
    ),
    Family(
        ("multiply", "times", "product", "mul"),
        ("Multiply two numbers", "Multiply a and b."),
        [(("a", "x", "first"), "integer", _number), (("b", "y", "second"), "integer", _number)],
        ("Multiply {0} by {1}.", "What is {0} times {1}?", "What is {0} * {1}?", "What is {0} multiplied by {1}?"),
    ),
    Family(
        ("search", "web_search", "search_web", "find", "lookup"),
        ("Search the web", "Look something up"),
        [(("query", "q", "text", "question"), "string", _words)],
        ("Search for {0}.", "Look up {0}.", "Find {0} on the web.", "Search the web for {0}"),
    ),
    Family(
        ("send_email", "send_mail", "mail", "send_message", "sendMessage"),
        ("Send a message to somebody", "Send an email"),
        [(("to", "recipient", "name"), "string", _person), (("text", "body", "message"), "string", _words)],
        ("Send {0} a message: {1}", "Write to {0}: {1}", "Send an email to {0}: {1}"),
    ),
    Family(
        ("set_timer", "timer", "start_timer", "setTimer"),
        ("Set a timer", "Start a timer of so many minutes"),
        [(("minutes", "duration", "length"), "integer", _number)],
        ("Set a timer for {0} minutes.", "Wake me in {0} minutes.", "Start a timer of {0} minutes."),
    ),
    Family(
        ("translate", "translate_text", "translation"),
        ("Translate a text", "Translate into another language"),
        [(("text", "phrase", "word"), "string", _word), (("language", "to", "target"), "string", _language)],
        ("Translate {0} into {1}.", "What is {0} in {1}?", "How do you say {0} in {1}?"),
    ),
    Family(
        ("get_order", "find_order", "order_status", "track_order"),
        ("The state of an order", "Look up an order by its number"),
        [(("id", "order_id", "number"), "string", _code)],
        ("Where is my order {0}?", "What is the state of order {0}?", "Track order {0}."),
    ),
    Family(
        ("book_flight", "flight", "find_flights", "search_flights"),
        ("Book a flight", "Find flights between two cities"),
        [(("origin", "from", "start"), "string", _city), (("destination", "to", "goal"), "string", _city)],
        ("Book a flight from {0} to {1}.", "I want to fly from {0} to {1}.", "Find a flight from {0} to {1}."),
    ),
    Family(
        ("User", "Person", "user", "person", "extract_user", "UserInfo"),
        ("A person", "Correctly extracted person"),
        [(("name", "first_name"), "string", _person), (("age", "years"), "integer", _number)],
        ("{0} is {1} years old.", "Extract: {0} is {1} years old.", "{0} is {1}.", "Extract {0} is {1} years old"),
    ),
]


def tool_of(rng: Random, family: Family, name: str) -> tuple[dict[str, Any], list[str]]:
    """Make a tool of the family; return it with its parameters' names, in the family's order."""
    keys = [rng.choice(names) for names, _, _ in family.keys]
    if len(set(keys)) < len(keys):
        keys = [names[0] for names, _, _ in family.keys]
    properties = {key: {"type": kind} for key, (_, kind, _) in zip(keys, family.keys, strict=True)}
    function: dict[str, Any] = {"name": name, "parameters": {"type": "object", "properties": properties}}
    if rng.random() < 0.8:
        function["description"] = rng.choice(family.about)
    return {"type": "function", "function": function}, keys


def _result(rng: Random) -> str:
    return str(
        rng.choice(
            [
                f"{rng.randint(-9, 40)} degrees and {rng.choice(['sunny', 'rainy', 'cloudy', 'windy'])}",
                json.dumps({rng.choice(["result", "value", "temperature", "sum"]): rng.randint(0, 999)}),
                json.dumps({"status": rng.choice(["ok", "sent", "done", "late"]), "id": _code(rng)}),
                rng.randint(0, 9999),
                _words(rng),
                _code(rng),
            ]
        )
    )


def _name(rng: Random, family: Family) -> str:
    """Pick a tool's name: mostly a usual one, sometimes an invented one."""
    return rng.choice(family.names) if rng.random() < 0.8 else "_".join([_word(rng), _invented(rng).lower()])


def tool_talk(rng: Random) -> Talk:
    chosen = rng.sample(FAMILIES, rng.choice([1, 1, 2, 3]))
    made = [tool_of(rng, family, _name(rng, family)) for family in chosen]
    tools = [tool for tool, _ in made]
    messages: list[dict[str, Any]] = []
    if rng.random() < 0.3:
        messages.append({"role": "system", "content": "You are a helpful assistant."})
    if rng.random() < 0.2:  # a question that no tool answers
        topics, weights = zip(*TOPICS, strict=True)
        asked, answered = rng.choices(topics, weights)[0](rng)
        return [*messages, _said("user", asked), _said("assistant", answered)], tools
    at = rng.randrange(len(chosen))
    family, keys, name = chosen[at], made[at][1], tools[at]["function"]["name"]
    times = 2 if rng.random() < 0.15 else 1
    drawn = [[draw(rng) for _, _, draw in family.keys] for _ in range(times)]
    form = rng.choice(family.asks)
    asked = " And ".join(form.format(*values) for values in drawn)
    if times == 2 and "{0}?" in form:
        asked = form.format(f"{drawn[0][0]} and {drawn[1][0]}")
    calls = [_call(name, dict(zip(keys, values, strict=True))) for values in drawn]
    messages += [_said("user", asked), {"role": "assistant", "content": None, "tool_calls": calls}]
    if rng.random() < 0.5:
        results = [_result(rng) for _ in drawn]
        messages += [_said("tool", result) for result in results]
        messages.append(_said("assistant", FOUND + "; ".join(results)))
    return messages, tools


def json_talk(rng: Random) -> Talk:
    """Make a talk that asks for JSON and is answered in JSON."""
    kind = rng.randrange(4)
    if kind == 0:
        asked, answered = arithmetic(rng)
        made: dict[str, Any] = {"result": int(answered.rstrip(".。").rpartition(" ")[2])}
    elif kind == 1:
        country, capital, *_ = rng.choice(words.CAPITALS)
        asked, made = f"What is the capital of {country}?", {"country": country, "capital": capital}
    elif kind == 2:
        name, age = _person(rng), _number(rng)
        asked, made = f"{name} is {age} years old.", {"name": name, "age": age}
    else:
        asked, answered = fact(rng)
        made = {"answer": answered}
    order = rng.choice(["Answer in JSON.", "Reply in JSON.", "Answer as JSON.", "Give me JSON."])
    answer = json.dumps(made, ensure_ascii=False)
    return [_said("user", f"{asked} {order}"), _said("assistant", answer)], []


def talks(seed: int) -> Iterator[Talk]:
    """Mix in plain dialogues half of the time, so that the model does not forget them."""
    rng, known = Random(seed), dialogues(seed)
    while True:
        kind = rng.random()
        if kind < 0.5:
            yield [dict(message) for message in next(known)], []
        else:
            yield (tool_talk if kind < 0.9 else json_talk)(rng)


def _said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}
