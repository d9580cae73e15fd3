"""Reads the definitions and uses in a piece of Lua from its syntax tree."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import tree_sitter_lua
from tree_sitter import Language, Node, Parser

from shared.queue import lua
from shared.redis import keys

PARSER = Parser(Language(tree_sitter_lua.language()))
SCOPES = {"block", "repeat_statement"}


@dataclass(frozen=True, slots=True)
class RedisCall:
    """A call of Redis, with each argument as written; literals are without their quotes."""

    command: str
    arguments: tuple[str, ...]
    literal: tuple[bool, ...]


def all_parts() -> list[lua.Part]:
    return [part for path in lua.files() for part in lua.parts(path.name, path.read_text(encoding="utf-8"))]


def job_fields() -> dict[str, tuple[set[str], set[str], str]]:
    """Read the table of a job's fields in Redis: the writers, the readers and the lifetime of each."""
    table = (keys.__doc__ or "").partition("The fields of rq:job")[2]
    _, _, *rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    return {name: (set(by.split(", ")), set(readers.split(", ")), goes) for name, by, readers, _, goes in cells}


def defined(text: str) -> set[str]:
    """Return the local names at the top level."""
    scope = set[str]()
    list(_free(_parsed(text), [scope]))
    return scope


def free(text: str) -> set[str]:
    """Return the names that are used without a local of that name in scope."""
    return set(_free(_parsed(text), [set()]))


def indexed(text: str, table: str = "") -> set[str]:
    """Return every X in `table.X`, or in any table's."""
    found = (node for node in _nodes(_parsed(text)) if node.type == "dot_index_expression")
    return {_text(node, "field") for node in found if not table or _text(node, "table") == table}


def given(text: str) -> set[str]:
    """Return the names of fields that constructors or assignments give to tables."""
    found = set[str]()
    for node in _nodes(_parsed(text)):
        if node.type == "field" and node.child_by_field_name("name"):
            found.add(_text(node, "name"))
        if node.type == "assignment_statement":
            targets = node.named_children[0].named_children
            found |= {_text(target, "field") for target in targets if target.type == "dot_index_expression"}
    return found


def redis_calls(text: str) -> list[RedisCall]:
    found = []
    for node in _nodes(_parsed(text)):
        if node.type == "function_call" and _text(node, "name") == "redis.call":
            arguments = node.child_by_field_name("arguments")
            assert arguments
            command, *rest = arguments.named_children
            texts, literal = tuple(map(_written, rest)), tuple(each.type == "string" for each in rest)
            found.append(RedisCall(_written(command), texts, literal))
    return found


def _parsed(text: str) -> Node:
    root = PARSER.parse(text.encode()).root_node
    assert not root.has_error, text
    return root


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.named_children:
        yield from _nodes(child)


def _written(node: Node) -> str:
    assert node.text is not None
    text = node.text.decode()
    return text[1:-1] if node.type == "string" else text


def _text(node: Node, field: str) -> str:
    found = node.child_by_field_name(field)
    return _written(found) if found else ""


def _free(node: Node, scopes: list[set[str]]) -> Iterator[str]:
    """Find free names. `scopes` holds the locals in scope, the innermost last; those of `node` are added to it."""
    match node.type:
        case "identifier":
            if not any(_written(node) in scope for scope in scopes):
                yield _written(node)
        case "variable_declaration":
            (inner,) = node.named_children
            names, *values = inner.named_children if inner.type == "assignment_statement" else [inner]
            yield from _all_free(values, scopes)  # values come before the names are in scope
            scopes[-1].update(_written(name) for name in names.named_children)
        case "function_declaration" | "function_definition":
            yield from _of_function(node, scopes)
        case "for_statement":
            yield from _of_loop(node, scopes)
        case "dot_index_expression" | "method_index_expression":
            yield from _all_free(node.children_by_field_name("table"), scopes)
        case "field":
            named = node.child_by_field_name("name")
            computed = [named] if named and node.children[0].type == "[" else []
            yield from _all_free([*computed, *node.children_by_field_name("value")], scopes)
        case kind if kind in SCOPES:
            yield from _all_free(node.named_children, [*scopes, set()])
        case _:
            yield from _all_free(node.named_children, scopes)


def _all_free(nodes: Sequence[Node], scopes: list[set[str]]) -> Iterator[str]:
    for node in nodes:
        yield from _free(node, scopes)


def _of_function(node: Node, scopes: list[set[str]]) -> Iterator[str]:
    name = node.child_by_field_name("name")
    if name and node.children[0].type == "local":
        scopes[-1].add(_written(name))
    elif name:
        yield from _free(name, scopes)
    parameters = node.child_by_field_name("parameters")
    inner = {_written(each) for each in parameters.named_children} if parameters else set[str]()
    yield from _all_free(node.children_by_field_name("body"), [*scopes, inner])


def _of_loop(node: Node, scopes: list[set[str]]) -> Iterator[str]:
    clause = node.child_by_field_name("clause")
    assert clause
    if clause.type == "for_numeric_clause":
        names = clause.children_by_field_name("name")
        yield from _all_free([each for each in clause.named_children if each not in names], scopes)
    else:
        variables, *values = clause.named_children
        names = variables.named_children
        yield from _all_free(values, scopes)
    inner = {_written(name) for name in names}
    yield from _all_free(node.children_by_field_name("body"), [*scopes, inner])
