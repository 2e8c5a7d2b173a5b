"""What an adapter becomes: a merged model, PEFT's format, or a run made of another program's adapter."""
