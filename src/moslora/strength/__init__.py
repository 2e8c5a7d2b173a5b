"""Strength curve: what an adapter gains and forgets if its change of the base is multiplied by C."""
