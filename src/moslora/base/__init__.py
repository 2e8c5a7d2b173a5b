"""The frozen base model: where it is, its shapes, how it is loaded, and faster norms and attention."""
