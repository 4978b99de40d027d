"""XPath 1.0, the part that people write, parsed for evaluation on columns. What is not in it is left to lxml."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>\d+(?:\.\d*)?|\.\d+)
    | (?P<string>"[^"]*"|'[^']*')
    | (?P<name>[^\W\d][\w.-]*)
    | (?P<op>//|\.\.|::|<=|>=|!=|[()\[\]|+\-*=<>/,.@$])
    )""",
    re.VERBOSE,
)
_OPERATORS = ("and", "or", "div", "mod")
_BEFORE_OPERAND = {None, "@", "::", "(", "[", ",", "/", "//", "|", "+", "-", "=", "!=", "<", "<=", ">", ">="}
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


class Parser:
    """Recursive descent over the grammar of XPath 1.0."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        at = 0
        text = text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise NotCompilableError(text[at:])
            kind = match.lastgroup or ""
            value = match.group(kind)
            before = self.tokens[-1] if self.tokens else (None, None)
            operand_next = before[1] in _BEFORE_OPERAND or before[0] == "operator"
            if (not operand_next and (value == "*" or value in _OPERATORS) and before[0] != "string") or (
                not operand_next and value in _OPERATORS
            ):
                kind = "operator"
            self.tokens.append((kind, value))
            at = match.end()
        self.at = 0

    def parse(self) -> Any:
        made = self.either()
        if self.at != len(self.tokens):
            raise NotCompilableError(self.tokens[self.at][1])
        return made

    def peek(self) -> str | None:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else None

    def kind(self) -> str | None:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else None

    def take(self, *values: str) -> str | None:
        """The next token if it is one of these operators."""
        if self.at < len(self.tokens) and self.kind() in ("op", "operator") and self.peek() in values:
            self.at += 1
            return self.tokens[self.at - 1][1]
        return None

    def need(self, value: str) -> None:
        if self.take(value) is None:
            raise NotCompilableError(f"{value} is missing")

    def _left(self, below: Any, *operators: str) -> Any:
        made = below()
        while operator := self.take(*operators):
            made = Call(operator, (made, below()))
        return made

    def either(self) -> Any:
        return self._left(self.both, "or")

    def both(self) -> Any:
        return self._left(self.equality, "and")

    def equality(self) -> Any:
        return self._left(self.relation, "=", "!=")

    def relation(self) -> Any:
        return self._left(self.sum_, "<", "<=", ">", ">=")

    def sum_(self) -> Any:
        return self._left(self.product, "+", "-")

    def product(self) -> Any:
        return self._left(self.unary, "*", "div", "mod")

    def unary(self) -> Any:
        if self.take("-"):
            return Call("neg", (self.unary(),))
        return self._left(self.path, "|")

    def path(self) -> Any:
        kind, value = self.kind(), self.peek()
        if kind == "number":
            self.at += 1
            return Literal(float(value or 0))
        if kind == "string":
            self.at += 1
            return Literal((value or "")[1:-1])
        if self.take("("):
            made = self.either()
            self.need(")")
            if self.peek() in ("/", "//", "["):
                raise NotCompilableError("a path after ()")
            return made
        if kind == "name" and self.at + 1 < len(self.tokens) and self.tokens[self.at + 1][1] == "(":
            return self.call(value or "")
        return self.location()

    def call(self, name: str) -> Any:
        self.at += 2
        args = []
        if not self.take(")"):
            args.append(self.either())
            while self.take(","):
                args.append(self.either())
            self.need(")")
        if FUNCTIONS.get(name) != len(args):
            raise NotCompilableError(f"{name}()")
        return Call(name, tuple(args))

    def location(self) -> Path:
        absolute = self.take("/") is not None
        if self.take("."):
            if self.peek() in ("/", "//"):
                raise NotCompilableError("./")
            return Path(False, ())
        steps = [self.step()]
        while self.take("/"):
            steps.append(self.step())
        return Path(absolute, tuple(steps))

    def step(self) -> Step:
        if self.kind() != "name" or self.tokens[self.at + 1 : self.at + 2] in ([("op", "::")], [("op", "(")]):
            raise NotCompilableError(str(self.peek()))
        name = self.peek() or ""
        self.at += 1
        predicates = []
        while self.take("["):
            predicates.append(self.either())
            self.need("]")
        return Step(name, tuple(predicates))


def parse(text: str) -> Any:
    """The tree of an expression; raises NotCompilableError for one that is not in the part that is known here."""
    return Parser(text).parse()
