"""Conversion: an adapter to a merged model, to PEFT's format or to another strength, and PEFT's adapters to runs."""
