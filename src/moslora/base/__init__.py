"""The frozen base model: where it is, its shapes, and how it is loaded, quantised and sharded."""
