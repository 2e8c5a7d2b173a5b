"""The rows of a run: loaded, capped, split, encoded, and what is to be said of them."""

from dataclasses import dataclass
from typing import Any

from moslora.data.encode import Encoded, Encoder, encode_examples
from moslora.data.select import cap, set_aside
from moslora.data.sources import data_hash, differences, load_training
from moslora.data.steps import label_count
from moslora.prompts import FORMATS
from moslora.recipe import Recipe


@dataclass(frozen=True)
class TrainingData:
    """Encoded rows, and what is to be said of them."""

    rows: list[Encoded]
    validation: list[Encoded]
    sha256: str
    notes: list[str]
    joins: bool

    def facts(self) -> dict[str, Any]:
        return {"sha256": self.sha256, "notes": self.notes}

    def remarks(self) -> list[str]:
        truncated = sum(row.truncated for row in self.rows)
        tokens = sum(len(row.input_ids) for row in self.rows)
        lines = [
            f"{len(self.rows):,} training rows of {tokens / len(self.rows):.1f} tokens on average, of which"
            f" {label_count(self.rows) / len(self.rows):.1f} labelled; {len(self.validation)} validation rows"
        ]
        if self.joins:
            lines.append(
                "note: this tokenizer joins the end of a prompt to the answer, so that prompt + answer is encoded"
                " otherwise as a whole than in its parts; training and scoring here take the parts"
            )
        if truncated:
            share = truncated / len(self.rows)
            lines.append(f"{truncated:,} rows ({share:.1%}) lost the start of their question to data.max_length")
        return lines + [f"note: {note}" for note in self.notes]


def training_data(recipe: Recipe, encoder: Encoder) -> TrainingData:
    """The rows that ``recipe.data`` describes."""
    section = recipe.data
    examples = load_training(section.tasks, source=section.source, winogrande=section.winogrande)
    chosen = cap(examples, rows=section.rows, seed=recipe.seed)
    train_examples, validation_examples = set_aside(chosen, validation_rows=section.validation_rows, seed=recipe.seed)
    format = FORMATS[section.format]
    return TrainingData(
        rows=encode_examples(train_examples, format, encoder, loss_on=section.loss_on),
        validation=encode_examples(validation_examples, format, encoder, loss_on=section.loss_on),
        sha256=data_hash(train_examples),
        notes=differences(section.source, section.tasks, winogrande=section.winogrande),
        joins=not format.joint and any(encoder.joins(format.train(example)) for example in train_examples[:20]),
    )
