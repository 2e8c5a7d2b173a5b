"""Data: rows of every source as `moslora.tasks.Example`, as token ids and labels, and as steps of a training."""
