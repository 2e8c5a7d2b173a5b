"""YAML for recipes: the safe subset, where `3e-4` is a number."""

import json
import re
from typing import Any

import yaml

# PyYAML follows YAML 1.1, which requires a point and a signed exponent in a float, and reads `3e-4` and `1e5` as text.
# YAML 1.2 (core schema, section 10.3.2) requires neither.
_EXPONENT_FLOAT = re.compile(r"^[-+]?(\.\d+|\d+\.?\d*)[eE][-+]?\d+$")

# Fixes for the usual causes of PyYAML's messages.
_FIXES = {
    "found '<block mapping start>'": "indent the line like its neighbours",
    "found '<block sequence start>'": "indent the line like its neighbours",
    "mapping values are not allowed here": "indent the line like its neighbours, or quote a text with a colon",
    "found character '\\t'": "indent with spaces, not tabs",
    "found unhashable key": "quote a text that begins with {{",
}


class _Loader(yaml.SafeLoader):
    """YAML loader with YAML 1.2's floats and every key as text, which refuses repeated keys, anchors and aliases."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        if getattr(event, "anchor", None) is not None:  # a few lines of aliases can expand to billions of values
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not allowed", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:  # PyYAML silently keeps the last one
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


class _Dumper(yaml.SafeDumper):
    """Dumper that writes no aliases, lists inline, and text that loads back unchanged."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_inline_list(self, items: list[Any]) -> yaml.Node:
        return self.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)

    def represent_text(self, text: str) -> yaml.Node:
        # Only double quotes have escapes: in single quotes a line end such as U+0085 loads as another character.
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for side in (_Loader, _Dumper):
    side.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT_FLOAT, list("-+.0123456789"))
_Dumper.add_representer(list, _Dumper.represent_inline_list)
_Dumper.add_representer(str, _Dumper.represent_text)


def parse(text: str) -> Any:
    """Read one YAML document.

    Raises:
        ValueError: not YAML, or not printable. One line with the position and, for usual mistakes, the fix.
    """
    try:
        value = yaml.load(text, _Loader)
        # Fails for integers too long to print, and for half a surrogate pair.
        json.dumps(value, skipkeys=True, default=str, ensure_ascii=False).encode()
        return value
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or ""
        fixes = [fix for part, fix in _FIXES.items() if part in problem]
        problem = "; ".join([problem, *fixes[:1]])
        if mark:
            problem = f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
        raise ValueError(problem) from error
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def render(values: dict[str, Any]) -> str:
    """Write a mapping so that `parse` reads it back equal, with the keys in order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def render_inline(value: Any) -> str:
    """Write any value on one line, so that `parse` reads it back equal."""
    for unicode in (True, False):  # with escapes if a character would break the line
        text = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=float("inf"), allow_unicode=unicode)
        text = text.removesuffix("\n").removesuffix("\n...")
        if text.isprintable():
            break
    return text
