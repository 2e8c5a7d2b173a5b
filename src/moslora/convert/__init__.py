"""Writes an adapter as a merged model or in PEFT's format, and makes a run of another program's adapter."""
