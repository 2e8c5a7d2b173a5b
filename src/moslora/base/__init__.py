"""The frozen base model: where it lies, its shapes, how it is loaded, and what makes it fast."""
