"""What the comments beside the fields of a class say: the settings are explained in one place, their code."""

import ast
import inspect
import io
import sys
import tokenize
from functools import cache


@cache
def comments_of(kind: type) -> dict[str, str]:
    """Return the comment beside each field, by the field's name; nothing where the source is not at hand."""
    try:
        source = inspect.getsource(sys.modules[kind.__module__])
    except (OSError, TypeError):
        return {}
    return comments_in(source, kind.__name__)


def comments_in(source: str, class_name: str) -> dict[str, str]:
    """The same, of a class in this source text."""
    beside = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            for line in node.body:
                targets = line.targets if isinstance(line, ast.Assign) else []
                target = (
                    line.target if isinstance(line, ast.AnnAssign) else next(iter(targets), None)
                )
                if isinstance(target, ast.Name):
                    lines = range(line.end_lineno or 0, line.lineno - 1, -1)
                    found[target.id] = next((beside[at] for at in lines if at in beside), "")
    return found
