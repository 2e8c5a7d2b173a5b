"""A model card by its fields."""

import re
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import ModelCard


class Scores(NamedTuple):
    """One evaluation on a card."""

    asked: str  # the line above the table
    columns: list[str]
    rows: dict[str, list[str]]  # task -> questions, score, score of the base


class Card:
    """The card in a folder, as the hub reads it."""

    def __init__(self, folder: Path) -> None:
        self.card = ModelCard.load(folder / "README.md")
        self.text: str = self.card.text

    @property
    def data(self) -> dict[str, object]:
        return self.card.data.to_dict()  # type: ignore[no-any-return]

    @property
    def fields(self) -> dict[str, str]:
        """Name -> value, of the section on training."""
        return dict(re.findall(r"^- ([\w' ]+): (.+)$", self.section("Training"), re.MULTILINE))

    @property
    def scores(self) -> list[Scores]:
        found = []
        for asked, head, rows in re.findall(r"^(Protocol .*):\n\n\| (.*) \|\n\|-.*\n((?:\|.*\n)+)", self.text, re.M):
            cells = [row.strip("| ").split(" | ") for row in rows.splitlines()]
            found.append(Scores(asked, head.split(" | "), {task: others for task, *others in cells}))
        return found

    def section(self, title: str) -> str:
        return self.text.partition(f"## {title}\n")[2].partition("\n## ")[0]
