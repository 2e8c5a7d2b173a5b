"""A folder to write recipes into."""

from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files into the working directory, by keyword: `write(a="text")` gives a.yaml."""
    monkeypatch.chdir(tmp_path)

    def files(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        return Path(f"{next(reversed(texts))}.yaml")

    return files
