"""Sources -> `moslora.tasks.Example` -> token ids and labels."""
