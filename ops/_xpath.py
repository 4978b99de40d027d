"""XPath 1.0: text to a tree, with the place of what is wrong; and the part of it that is evaluated on columns.

A tree is made of tuples:

("num", float) ("lit", str) ("call", name, args) ("bin", operator, a, b) ("neg", a) and
("path", start, steps): start is "/" (the document), "" (the context) or an expression; a step is
(axis, test, predicates), the axis "" for the predicates of a start that is an expression.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from rayds.errors import UnknownNameError, UsageError

Tree = tuple[Any, ...]

_NAME = r"[^\W\d][\w.\-·]*"
_TOKEN = re.compile(
    rf"""\s*(?:(?P<num>\d+(?:\.\d*)?|\.\d+)|(?P<lit>"[^"]*"|'[^']*')
    |(?P<op>//|::|!=|<=|>=|\.\.|[()\[\].@,/|+\-=<>*$:])|(?P<name>{_NAME})|(?P<end>$))""",
    re.VERBOSE,
)
_AXES = (
    "ancestor", "ancestor-or-self", "attribute", "child", "descendant", "descendant-or-self", "following",
    "following-sibling", "namespace", "parent", "preceding", "preceding-sibling", "self",
)  # fmt: skip
_NODE_TESTS = ("node", "text", "comment", "processing-instruction")
# Function: fewest and most arguments.
_ALL_FUNCTIONS = {
    "last": (0, 0), "position": (0, 0), "count": (1, 1), "id": (1, 1), "local-name": (0, 1), "namespace-uri": (0, 1),
    "name": (0, 1), "string": (0, 1), "concat": (2, 99), "starts-with": (2, 2), "contains": (2, 2),
    "substring-before": (2, 2), "substring-after": (2, 2), "substring": (2, 3), "string-length": (0, 1),
    "normalize-space": (0, 1), "translate": (3, 3), "boolean": (1, 1), "not": (1, 1), "true": (0, 0), "false": (0, 0),
    "lang": (1, 1), "number": (0, 1), "sum": (1, 1), "floor": (1, 1), "ceiling": (1, 1), "round": (1, 1),
}  # fmt: skip
_NODE_SETS = ("count", "sum")  # functions that take nothing else
# Binary operators by how tightly they bind, the loosest first.
_LEVELS = (("or",), ("and",), ("=", "!="), ("<", "<=", ">", ">="), ("+", "-"), ("*", "div", "mod"))
_DESCEND: Tree = ("descendant-or-self", "node()", ())
_SIMPLE = {".": ("self", "node()", ()), "..": ("parent", "node()", ())}


# Those that are evaluated on columns, with the number of their arguments.
FUNCTIONS = {
    "not": 1, "true": 0, "false": 0, "boolean": 1, "count": 1, "contains": 2, "starts-with": 2, "number": 1,
    "string": 1, "string-length": 1, "sum": 1, "floor": 1, "ceiling": 1, "round": 1,
}  # fmt: skip


class NotCompilableError(Exception):
    """The expression is outside of what is evaluated on columns; it may be right all the same."""


@dataclass(frozen=True)
class Literal:
    """A number or a text."""

    value: float | str


@dataclass(frozen=True)
class Call:
    """A function, or an operator by its sign ("neg" for a minus before an operand)."""

    name: str
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Step:
    """A step of a path to children of a name, with predicates."""

    name: str
    predicates: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Path:
    """A path; absolute: from the document on. No steps: the node itself."""

    absolute: bool
    steps: tuple[Step, ...]


def tree_of(text: str) -> Tree:
    """The tree of an expression; raises UsageError that names the place where it is none."""
    return _Parser(text).all()


def parse(text: str) -> Any:
    """The expression for evaluation on columns. Raises NotCompilableError for one that is left to lxml, UsageError for
    what is no expression."""
    return _compilable(tree_of(text))


def may_select(tree: Tree, name: str) -> bool:
    """Whether an expression can select elements of a name."""
    if tree[0] == "bin" and tree[1] == "|":
        return may_select(tree[2], name) and may_select(tree[3], name)
    if tree[0] != "path":
        return bool(tree[:2] == ("call", "id"))
    start, steps = tree[1], tree[2]
    if not steps:
        return False
    axis, test = steps[-1][:2]
    if isinstance(start, tuple) and axis == "":
        return may_select(start, name)
    return axis not in ("attribute", "namespace") and test in (name, "*", "node()")


def _compilable(tree: Tree) -> Any:
    kind = tree[0]
    if kind in ("num", "lit"):
        return Literal(tree[1])
    if kind == "neg":
        return Call("neg", (_compilable(tree[1]),))
    if kind == "bin":
        return Call(tree[1], (_compilable(tree[2]), _compilable(tree[3])))
    if kind == "call":
        if FUNCTIONS.get(tree[1]) != len(tree[2]):
            raise NotCompilableError(f"{tree[1]}()")
        return Call(tree[1], tuple(map(_compilable, tree[2])))
    start, steps = tree[1], tree[2]
    if start == "" and steps == (_SIMPLE["."],):
        return Path(False, ())
    if isinstance(start, tuple) or not steps:
        raise NotCompilableError("a path after ()")
    return Path(start == "/", tuple(map(_step, steps)))


def _step(step: Tree) -> Step:
    axis, test, predicates = step
    if axis != "child" or test == "*" or test.endswith(")"):
        raise NotCompilableError(f"{axis}::{test}")
    return Step(test, tuple(map(_compilable, predicates)))


def is_node_set(tree: Tree) -> bool:
    """Whether the value of an expression is a set of nodes."""
    return tree[0] == "path" or (tree[0] == "bin" and tree[1] == "|") or tree[:2] == ("call", "id")


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.depth = text, 0
        self.tokens: list[tuple[str, str, int]] = []
        at = 0
        while not self.tokens or self.tokens[-1][0] != "end":
            m = _TOKEN.match(text, at)
            if m is None:
                at = len(text) - len(text[at:].lstrip())
                raise self.error("unclosed quotes" if text[at] in "'\"" else "no XPath", at)
            kind = m.lastgroup or ""
            self.tokens.append((kind, m[kind], m.start(kind)))
            at = m.end()
        self.i = 0

    def error(self, reason: str, at: int | None = None) -> UsageError:
        at = self.tokens[self.i][2] if at is None else at
        place = f"at character {at + 1}, {self.text[at : at + 20]!r}" if at < len(self.text) else "at its end"
        return UsageError(f"{self.text!r} is no XPath 1.0 expression: {place}: {reason}")

    def peek(self, *words: str, ahead: int = 0) -> bool:
        j = self.i + ahead
        return j < len(self.tokens) and self.tokens[j][0] in ("op", "name") and self.tokens[j][1] in words

    def take(self, *words: str) -> str | None:
        if not self.peek(*words):
            return None
        self.i += 1
        return self.tokens[self.i - 1][1]

    def need(self, word: str) -> None:
        if not self.take(word):
            raise self.error(f"expected {word!r}")

    def all(self) -> Tree:
        if self.tokens[0][0] == "end":
            raise self.error("it is empty")
        tree = self.binary()
        if self.tokens[self.i][0] != "end":
            raise self.error("expected an operator or the end")
        return tree

    def binary(self, level: int = 0) -> Tree:
        if level == len(_LEVELS):
            return self.unary()
        if level == 0:
            self.depth += 1
            if self.depth > 60:
                raise self.error("nested too deeply")
        tree = self.binary(level + 1)
        while op := self.take(*_LEVELS[level]):
            tree = ("bin", op, tree, self.binary(level + 1))
        self.depth -= level == 0
        return tree

    def unary(self) -> Tree:
        negative = False
        signs = 0
        while self.take("-"):
            negative, signs = not negative, signs + 1
        tree = self.path()
        while self.peek("|"):
            at = self.i
            self.i += 1
            tree = ("bin", "|", tree, self.path())
            if not (is_node_set(tree[2]) and is_node_set(tree[3])):
                raise self.error("'|' joins paths only", self.tokens[at][2])
        if not signs:
            return tree
        return ("neg", tree) if negative else ("neg", ("neg", tree))

    def path(self) -> Tree:
        kind, value, _ = self.tokens[self.i]
        call = kind == "name" and self.peek("(", ahead=1) and value not in _NODE_TESTS
        if kind in ("num", "lit") or self.peek("(", "$") or call:
            return self.filtered()
        steps: list[Tree] = []
        start = ""
        if self.take("//"):
            start = "/"
            steps.append(_DESCEND)
        elif self.take("/"):
            start = "/"
            if not self.starts_step():
                return ("path", "/", ())
        steps += self.steps()
        return ("path", start, tuple(steps))

    def starts_step(self) -> bool:
        return self.tokens[self.i][0] == "name" or self.peek(".", "..", "@", "*")

    def steps(self) -> list[Tree]:
        found = [self.step()]
        while op := self.take("/", "//"):
            if op == "//":
                found.append(_DESCEND)
            found.append(self.step())
        return found

    def filtered(self) -> Tree:
        kind, value, at = self.tokens[self.i]
        self.i += 1
        if kind == "num":
            tree: Tree = ("num", float(value))
        elif kind == "lit":
            tree = ("lit", value[1:-1])
        elif value == "(":
            tree = self.binary()
            self.need(")")
        elif value == "$":
            raise self.error("there are no variables", at)
        else:
            tree = self.call(value, at)
        if self.peek("[", "/", "//"):
            if not is_node_set(tree):
                raise self.error("only a path can be followed by this")
            steps: list[Tree] = [("", "", self.predicates())]
            while op := self.take("/", "//"):
                steps += [_DESCEND] if op == "//" else []
                steps.append(self.step())
            tree = ("path", tree, tuple(steps))
        return tree

    def call(self, name: str, at: int) -> Tree:
        if name not in _ALL_FUNCTIONS:
            raise self.error(str(UnknownNameError("function", name, _ALL_FUNCTIONS)), at)
        self.need("(")
        args: list[Tree] = []
        while not self.peek(")"):
            args.append(self.binary())
            if not self.take(","):
                break
        self.need(")")
        low, high = _ALL_FUNCTIONS[name]
        if not low <= len(args) <= high:
            raise self.error(f"{name}() does not take {len(args)} arguments", at)
        if name in _NODE_SETS and not is_node_set(args[0]):
            raise self.error(f"{name}() takes a path", at)
        if name in ("name", "local-name", "namespace-uri") and args and not is_node_set(args[0]):
            raise self.error(f"{name}() takes a path", at)
        return ("call", name, tuple(args))

    def step(self) -> Tree:
        if (simple := self.take("..", ".")) is not None:
            return _SIMPLE[simple]
        axis = "child"
        if self.take("@"):
            axis = "attribute"
        elif self.peek("::", ahead=1):
            axis = self.tokens[self.i][1]
            if axis not in _AXES:
                raise self.error(str(UnknownNameError("axis", axis, _AXES)))
            self.i += 2
        kind, value, _ = self.tokens[self.i]
        if kind != "name" and value != "*":
            raise self.error("expected a name")
        self.i += 1
        if value in _NODE_TESTS and self.take("("):
            if value == "processing-instruction" and self.tokens[self.i][0] == "lit":
                self.i += 1
            self.need(")")
            value += "()"
        elif self.peek(":"):
            raise self.error("there are no namespaces")
        return (axis, value, self.predicates())

    def predicates(self) -> tuple[Tree, ...]:
        found = []
        while self.take("["):
            found.append(self.binary())
            self.need("]")
        return tuple(found)
