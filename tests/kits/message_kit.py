"""What a message has to say: its parts, such as the key, the value and the fix. Its wording is free."""

import re


def in_order(*parts: object) -> str:
    """A pattern for a text that has all ``parts``, one after the other; for ``pytest.raises(match=…)``."""
    return "(?s)" + ".*".join(re.escape(str(part)) for part in parts)


def says(text: str, *parts: object) -> bool:
    """Whether ``text`` has all ``parts``, one after the other."""
    return re.search(in_order(*parts), text) is not None
