"""The scripts inside Redis, one for each verb of queue.lua, with only those definitions that the verb needs: Redis
makes every function of a script anew at each call, which for all of them would cost more than most verbs do."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from shared.domain.job import Priority
from shared.redis import keys

HERE = Path(__file__).parent
FILES = ("fair_queue.lua", "key_limits.lua", "records.lua", "queue.lua")
BEGIN = re.compile(
    r"(?:local function (?P<function>\w+)|local (?P<names>\w+(?:, \w+)*) =|function verbs\.(?P<verb>\w+))"
)
WORD = re.compile(r"[A-Za-z_]\w*")


@cache
def scripts() -> Mapping[str, str]:
    """By verb. ARGV is the verb, then its arguments."""
    weights = ", ".join(f"[{priority.rank}] = {priority.weight}" for priority in Priority)
    texts = [f"local CLASS_WEIGHT = {{ {weights} }}", keys.lua_prelude()]
    texts += [(HERE / name).read_text(encoding="utf-8") for name in FILES]
    parts = list(_parts("\n".join(texts).splitlines()))
    where = {name: at for at, (names, _) in enumerate(parts) for name in names}
    return {name.removeprefix("verbs."): _linked(name, parts, where) for name in where if name.startswith("verbs.")}


def _parts(lines: Iterable[str]) -> Iterable[tuple[list[str], list[str]]]:
    """The definitions at the left margin, with the names that each of them gives; a verb's is `verbs.` and its own."""
    names, body = list[str](), list[str]()
    for line in lines:
        begun = BEGIN.match(line)
        if begun or line.startswith("return "):
            if names:
                yield names, body
            names, body = [], []
        if begun:
            names = [f"verbs.{begun['verb']}"] if begun["verb"] else (begun["function"] or begun["names"]).split(", ")
        if names and line.strip() and not line.lstrip().startswith("--"):
            body.append(line)
    if names:
        yield names, body


def _linked(verb: str, parts: list[tuple[list[str], list[str]]], where: dict[str, int]) -> str:
    needed, open_ = set[int](), [where[verb]]
    while open_:
        at = open_.pop()
        if at not in needed:
            needed.add(at)
            open_ += [where[word] for word in WORD.findall("\n".join(parts[at][1])) if word in where]
    text = "\n".join(line for at in sorted(needed) for line in parts[at][1])
    return f"{text}\nreturn {verb}(unpack(ARGV, 2, 12))"
