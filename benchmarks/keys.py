"""Write the tables of keys in `docs/coming-from.md` from `recipe/other_programs.yaml`; `make docs` runs it."""

import re
from pathlib import Path

from moslora.recipe.other_programs import translations

PAGE = Path(__file__).parents[1] / "docs/coming-from.md"


def with_tables(page: str) -> str:
    """The page with the rows of its tables as the data has them: a table is known by its columns."""
    return re.sub(r"^\| moslora \|(.*)\|\n(?:\|.*\n)+", _table, page, flags=re.M)


def _table(found: re.Match[str]) -> str:
    programs = [column.strip() for column in found[1].split("|")]
    lines = [f"| moslora |{found[1]}|", f"|---{'|---' * len(programs)}|"]
    for key, theirs in translations()["keys"].items():
        cells = "".join(f" {theirs[program]} |" if program in theirs else " |" for program in programs)
        if cells.strip(" |"):
            lines.append(f"| `{key}` |{cells}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
