"""The curve of an adapter's strength: what it gains and forgets where its change is applied C times as much."""
