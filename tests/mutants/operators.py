"""The faults that are planted: each a small edit of the text, as a slip of the hand would be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

COMPARE = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
OTHER_NAME = {
    "min": "max", "minimum": "maximum", "argmin": "argmax", "any": "all", "floor": "ceil", "head": "tail",
    "zeros": "ones",
}  # fmt: skip
OTHER_NAME |= {new: old for old, new in OTHER_NAME.items()}
UNORDERED = {"isinstance", "getattr", "hasattr", "min", "max", "isclose", "allclose", "equal", "array_equal", "minimum"}
KINDS = {"None", "str", "int", "float", "bytes", "Path", "Manifest"}
WAS = "<was>"
# Slips that no operator makes: file, the text that was, the text it becomes.
BY_HAND = [
    ("files.py", "os.replace(temporary, path)", "shutil.copy(temporary, path)"),
    ("serving.py", "with self._lock:\n            now", "with threading.Lock():\n            now"),
    (
        "serving.py",
        "self.catalogue = Catalogue(index, titles, added)\n        return vector",
        "self.catalogue = Catalogue(index, now.titles, now.added)\n"
        "            self.catalogue = Catalogue(index, titles, added)\n        return vector",
    ),
    (
        "course/workspace.py",
        'dssm_helpers.MODULES[: dssm_helpers.MODULES.index("index")]',
        '[m for m in dssm_helpers.MODULES[: dssm_helpers.MODULES.index("index")] if m != "training"]',
    ),
    ("training.py", "seed + 1000 * self.rank", "self.config.seed + 1000 * self.rank"),
    ("onnx_export.py", ">= size]", "> size]"),
]
# Arguments that change no result; `strict` guards what cannot happen.
UNSEEN = {None, "strict", "encoding", "progress", "disable"}
SEEDING = {"default_rng", "manual_seed", "seed_everything"}  # another seed is no fault
UNWRAPPED = {"abs", "sorted", "normalize", "log", "log1p", "sqrt", "square", "exp", "tanh", "set", "ascontiguousarray"}
UNCHAINED = {"copy", "clone", "detach", "lower", "strip", "abs", "round", "contiguous", "clip", "clamp", "fillna"}


@dataclass(frozen=True)
class Mutant:
    """``was``, at character ``start`` of ``file`` in ``dssm_helpers``, becomes ``now``; ``code`` is its first line."""

    file: str
    line: int
    operator: str
    code: str
    was: str
    now: str
    start: int

    def planted(self, source: str) -> str:
        assert source.startswith(self.was, self.start), f"{self.file} is no longer what it was"
        return source[: self.start] + self.now + source[self.start + len(self.was) :]


def mutants_of(file: str, source: str) -> list[Mutant]:
    """Every fault that the operators can plant in ``source``, in the order of the text."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    lines = source.splitlines(keepends=True)

    def place(line: int, column: int) -> int:  # ast counts bytes
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    found = {}
    for node, operator, now in _edits(ast.parse(source)):
        if file.startswith("course/checks/") and type(getattr(node, "value", None)) in (int, float):
            continue  # a number of an example; another does as well
        start, end = place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)
        was = source[start:end]
        mutant = Mutant(file, node.lineno, operator, lines[node.lineno - 1].strip(), was, now.replace(WAS, was), start)
        try:
            compile(mutant.planted(source), file, "exec")
        except SyntaxError:  # such as a name in brackets where only a name may stand
            continue
        found[mutant.start, mutant.was, mutant.now] = mutant
    return sorted(found.values(), key=lambda m: (m.start, m.operator, m.now))


def by_hand(file: str, source: str) -> list[Mutant]:
    found = []
    for where, was, now in BY_HAND:
        if where == file:
            start = source.index(was)
            line = source.count("\n", 0, start) + 1
            found.append(Mutant(file, line, "by hand", source.splitlines()[line - 1].strip(), was, now, start))
    return found


def _edits(tree: ast.AST) -> Iterator[tuple[Any, str, str]]:
    """A node, the operator's name and the text that takes the node's place."""
    for node in _code(tree):
        if isinstance(node, ast.stmt):
            yield from _statements(node)
        elif isinstance(node, ast.expr):
            yield from ((node, operator, f"({ast.unparse(new)})") for operator, new in _expressions(node))
        for test in _tests(node):
            yield test, "condition negated", f"(not ({ast.unparse(test)}))"


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """What runs: no docstrings, annotations, texts, messages of errors or ``__repr__``."""
    if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)):
        return
    if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in SEEDING:
        return
    if getattr(node, "name", "") == "__repr__" or getattr(getattr(node, "test", None), "id", "") == "TYPE_CHECKING":
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases", "msg"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _code(child)


def _tests(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        return [node.test]
    return list(node.ifs) if isinstance(node, ast.comprehension) else []


def _with(node: Any, **changes: Any) -> Any:
    new = deepcopy(node)
    for name, value in changes.items():
        setattr(new, name, value)
    return new


def _expressions(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    match node:
        case ast.Compare(ops=[op, *rest]):
            yield "comparison", _with(node, ops=[COMPARE[type(op)](), *rest])
        case ast.BinOp(op=op) if type(op) in ARITHMETIC and not _no_number(node.left) and not _no_number(node.right):
            yield "arithmetic", _with(node, op=ARITHMETIC[type(op)]())
        case ast.BoolOp(op=op):
            yield "and, or", _with(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Invert() | ast.Not() | ast.USub()):
            yield "sign or not dropped", node.operand
        case ast.Constant(value=bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield "constant", ast.Constant(value + 1)
            if value > 0:
                yield "constant", ast.Constant(value - 1)
        case ast.Constant(value=float(value)):
            yield "constant", ast.Constant(value * 10 or 1.0)
        case ast.Call():
            yield from _calls(node)


def _calls(node: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    function = node.func
    name = getattr(function, "attr", getattr(function, "id", ""))
    if name == "print" or name.endswith(("Error", "Warning")):
        return
    for number, keyword in enumerate(node.keywords):
        if keyword.arg in ("axis", "dim") and isinstance(keyword.value, (ast.Constant, ast.UnaryOp)):
            other = ast.Constant(1 if ast.unparse(keyword.value) == "0" else 0)
            changed = [*node.keywords[:number], ast.keyword(keyword.arg, other), *node.keywords[number + 1 :]]
            yield "axis", _with(node, keywords=changed)
        elif keyword.arg not in UNSEEN:
            yield "keyword dropped", _with(node, keywords=node.keywords[:number] + node.keywords[number + 1 :])
    pair = node.args[:2]
    alike = len(pair) == 2 and _no_number(pair[0]) == _no_number(pair[1]) and name not in UNORDERED
    if alike and not any(isinstance(argument, ast.Starred) for argument in pair):
        yield "arguments swapped", _with(node, args=[node.args[1], node.args[0], *node.args[2:]])
    if ast.unparse(function) == "os.replace":
        yield "copied, not renamed", _with(node, func=ast.parse("__import__('shutil').copy", mode="eval").body)
    if name in OTHER_NAME:
        renamed = "attr" if isinstance(function, ast.Attribute) else "id"
        yield "other function", _with(node, func=_with(function, **{renamed: OTHER_NAME[name]}))
    if name in UNWRAPPED and node.args:
        yield "call dropped", node.args[0]
    if name in UNCHAINED and isinstance(function, ast.Attribute):
        yield "call dropped", function.value


def _no_number(node: ast.expr) -> bool:
    """A text, or a part of a type like ``int | None``."""
    text = isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    return text or ast.unparse(node) in KINDS


def _statements(node: ast.stmt) -> Iterator[tuple[Any, str, str]]:
    match node:
        case ast.Expr(value=ast.Call(func=function)) if getattr(function, "id", "") != "print":
            yield node, "statement dropped", "pass"
        case ast.AugAssign() | ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.Delete():
            yield node, "statement dropped", "pass"
        case ast.If(body=[*_, ast.Raise() | ast.Continue() | ast.Return()], orelse=[]):
            yield node, "guard dropped", "pass"
        case ast.With(items=[ast.withitem(context_expr=context, optional_vars=None)]):
            yield context, "lock or context dropped", "__import__('contextlib').nullcontext()"
        case ast.For(body=[*_, last]) if isinstance(last, (ast.Expr, ast.Assign, ast.AugAssign)):
            yield last, "loop ends early", f"{WAS}; break"
        case ast.Continue() | ast.Break():
            yield node, "continue, break", "break" if isinstance(node, ast.Continue) else "continue"
    for handler in getattr(node, "handlers", ()):
        if isinstance(handler.type, ast.Tuple):
            for number in range(len(handler.type.elts)):
                fewer = handler.type.elts[:number] + handler.type.elts[number + 1 :]
                yield handler.type, "exception not caught", ast.unparse(ast.Tuple(fewer, ast.Load()))
