"""What llama.cpp expects next after each of some prompts: asked by second_model.py.

    PYTHON next_tokens.py MODEL.gguf PROMPTS.json REPLIES.json THREADS

PYTHON is an interpreter with the package xllamacpp. It need not have this project, so nothing of it is imported.
Prompts are lists of tokens; a reply is the most probable next token with its log-probability.
"""

import json
import sys
import urllib.request
from pathlib import Path


def main() -> None:
    import xllamacpp

    model, prompts, replies, threads = sys.argv[1:]
    how = xllamacpp.CommonParams()
    how.model.path = model
    how.n_ctx = 2_048
    how.n_parallel = 1
    how.cpuparams.n_threads = int(threads)
    server = xllamacpp.Server(how)
    found = []
    for prompt in json.loads(Path(prompts).read_text(encoding="utf-8")):
        body = {"prompt": prompt, "n_predict": 1, "n_probs": 1, "temperature": 0, "cache_prompt": False}
        request = urllib.request.Request(
            f"{server.listening_address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:
            (first,) = json.load(reply)["completion_probabilities"]
        (best,) = first["top_logprobs"]
        found.append([best["id"], best["logprob"]])
    Path(replies).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
