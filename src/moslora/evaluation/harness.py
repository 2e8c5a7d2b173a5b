"""A run as a model of lm-eval (https://github.com/EleutherAI/lm-evaluation-harness), scored by the engine of ``cloze``,
and writing by `moslora.evaluation.decoding`.

    python -m moslora.evaluation.harness --model moslora --model_args run=runs/mine --tasks arc_easy,gsm8k

takes lm-eval's own options; ``run``, ``base``, ``dtype`` and ``batch_tokens`` are those of ``moslora eval``. The common
beginning of a question's options, or of all prompts, is read once, and nothing is padded.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from moslora.adapters import Families
from moslora.choices import DType
from moslora.data.encode import EncodedText
from moslora.errors import UsageError
from moslora.evaluation.cloze import Scored
from moslora.evaluation.decoding import decode
from moslora.evaluation.open_ended import Stops, end_tokens
from moslora.evaluation.scorer import Request
from moslora.evaluation.scorers import make_scorer
from moslora.evaluation.target import open_target


@register_model("moslora")
class HarnessModel(TemplateLM):
    """lm-eval's interface. ``others``: it sends its batch size and device to every model."""

    def __init__(
        self,
        run: str,
        *,
        base: bool = False,
        dtype: DType | None = None,
        batch_tokens: int | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        opened = open_target(run, base=base, dtype=dtype)
        if opened.adapter and opened.adapter.trained_tasks() is not None:
            raise UsageError(f"{run}: its gate depends on the task, which lm-eval does not name; use moslora eval")
        self.tokenizer = opened.tokenizer()
        request = Request(protocol="cloze", format="cloze", batch_tokens=batch_tokens)
        self.scorer = make_scorer(opened.load(), self.tokenizer, request)
        self.backend = "causal"

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return self.eot_token_id
        return int(bos)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **others: Any) -> list[int]:
        ids: list[int] = self.tokenizer(string, add_special_tokens=add_special_tokens is not False)["input_ids"]
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[Scored]:
        groups: dict[tuple[int, ...], list[int]] = {}  # context -> the requests that have it
        for i, (_, context, _) in enumerate(requests):
            groups.setdefault(tuple(context), []).append(i)
        questions = []
        for group in groups.values():
            questions.append([self._text(*requests[i][1:]) for i in group])
        with torch.inference_mode():
            scores = self.scorer.in_batches(questions, tokens=self.scorer.batch_tokens)
        found: dict[int, Scored] = {}
        for group, of_group in zip(groups.values(), scores, strict=True):
            found.update(zip(group, of_group, strict=True))
        return [found[i] for i in range(len(requests))]

    def _text(self, context: list[int], answer: list[int]) -> EncodedText:
        """As lm-eval cuts it: the end of the text that fits, its last token aside."""
        length = self.scorer.encoder.max_length
        ids = [*context, *answer]
        kept = ids
        if length is not None:
            kept = ids[-(length + 1) :]
        if len(kept) <= len(answer):
            raise UsageError(f"lm-eval: an answer of {len(answer)} tokens exceeds the model's context of {length}")
        return EncodedText(kept, len(kept) - len(answer), truncated=len(kept) < len(ids))

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """The greedy texts before a stop. lm-eval sends the requests of all tasks at once."""
        alike: dict[str, list[int]] = {}  # settings of the text -> the requests that have them
        for i, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(i)
        texts: dict[int, str] = {}
        for group in alike.values():
            prompts = [requests[i].args[0] for i in group]
            texts.update(zip(group, self._write(prompts, requests[group[0]].args[1]), strict=True))
        return [texts[i] for i in range(len(requests))]

    def _write(self, prompts: Sequence[str], settings: dict[str, Any]) -> list[str]:
        """The texts after these prompts."""
        options: Any = normalize_gen_kwargs(settings)
        if options["do_sample"] or options.get("num_beams", 1) > 1:
            raise UsageError(
                "lm-eval: moslora generates greedily, but this task asks for samples or beams; use --model hf"
            )
        stops = list(options["until"])
        new_tokens: int = options["max_gen_toks"]
        longest = self.scorer.encoder.max_length
        ids = [self._prompt(prompt) for prompt in prompts]
        if longest is not None and new_tokens >= longest:
            raise UsageError(f"lm-eval: max_gen_toks = {new_tokens} leaves no room in the model's context of {longest}")
        if longest is not None:
            ids = [tokens[new_tokens - longest :] for tokens in ids]  # the end of a prompt that is too long
        model = self.scorer.model
        with Families(model).folded(model.dtype):
            written = decode(
                model,
                ids,
                max_new_tokens=new_tokens,
                ended=Stops(self.tokenizer, stops).reached,
                ends=end_tokens(model, self.tokenizer),
                batch_tokens=self.scorer.batch_tokens,
            )
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [postprocess_generated_text(text, stops, None) for text in texts]

    def _prompt(self, text: str) -> list[int]:
        """Its tokens, with BOS once, also where the text begins with it."""
        bos = self.tokenizer.bos_token
        has_bos = bos is not None and text.startswith(bos)
        return self.tok_encode(text, add_special_tokens=not has_bos)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise UsageError("lm-eval: moslora does not compute the perplexity of texts for lm-eval; use moslora eval")


if __name__ == "__main__":
    cli_evaluate()
