"""YAML as recipes write it: the safe subset, with `3e-4` a number and a repeated key an error."""

import re
from typing import Any

import yaml

# YAML 1.1, which PyYAML follows, reads `3e-4` and `1e5` as text, because it asks a float for a point and its
# exponent for a sign. YAML 1.2 (core schema, section 10.3.2) asks for neither.
_EXPONENT_FLOAT = re.compile(r"^[-+]?(\.\d+|\d+\.?\d*)[eE][-+]?\d+$")

MOST_LEVELS = 50
"""Of a document; a recipe needs five."""

MOST_VALUES = 10_000
"""Of a document with its aliases written out, since a few lines of aliases to aliases stand for billions; a recipe
needs a hundred."""


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` with the floats of YAML 1.2, and without repeated keys or aliases beyond measure."""

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _size(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"with its aliases written out it has more than {MOST_VALUES:,} values")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # refused by the base class
            if key_node.value in seen:  # PyYAML would keep the last one without a word
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key_node.value!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _size(node: yaml.Node, known: dict[yaml.Node, float]) -> float:
    """How many values `node` stands for; infinitely many where it holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if node not in known:
        known[node] = float("inf")  # for those inside it
        inside = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[node] = 1 + sum(_size(part, known) for part in inside)
    return known[node]


class _Dumper(yaml.SafeDumper):
    """`yaml.SafeDumper` whose text comes back as it was, and whose lists are inline."""

    def represent_inline_list(self, items: list[Any]) -> yaml.Node:
        return self.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)

    def represent_text(self, text: str) -> yaml.Node:
        # Only double quotes have escapes: in single ones a line end such as U+0085 comes back as another character.
        style = None if text.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT_FLOAT, list("-+.0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT_FLOAT, list("-+.0123456789"))
_Dumper.add_representer(list, _Dumper.represent_inline_list)
_Dumper.add_representer(str, _Dumper.represent_text)


def parse(text: str) -> Any:
    """Read one YAML document.

    Raises:
        ValueError: not YAML; one line, with the place in the text.
    """
    try:
        value = yaml.load(text, _Loader)
        _refuse_unwieldy(value)
        return value
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"{place}{error.problem or error.context}") from error
    except RecursionError:
        raise ValueError("its brackets or indents are nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _refuse_unwieldy(value: Any, level: int = 0) -> None:
    """Refuses what cannot be walked or shown; aliases were counted before, so that there is an end to it."""
    if level > MOST_LEVELS:
        raise ValueError(f"is nested more than {MOST_LEVELS} levels deep")
    if isinstance(value, int) and value.bit_length() > 4096:
        raise ValueError("a whole number of more than 4096 bits")
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        raise ValueError(f"{value!r} holds half a surrogate pair, which is no character")
    if isinstance(value, dict | list | tuple | set):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _refuse_unwieldy(item, level + 1)


def render(values: dict[str, Any]) -> str:
    """Write a mapping so that `parse` gives it back equal; the order of the keys is kept."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def render_inline(value: Any) -> str:
    """Write any value on one line, so that `parse` gives it back equal."""
    options: dict[str, Any] = {"Dumper": _Dumper, "default_flow_style": True, "width": float("inf")}
    for as_it_is in (True, False):  # or with escapes, where a character of it would break the line
        text = yaml.dump(value, allow_unicode=as_it_is, **options).removesuffix("\n").removesuffix("\n...")
        if text.isprintable():
            break
    return text
