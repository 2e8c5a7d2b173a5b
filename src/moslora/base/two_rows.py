"""The rows by which a model is looked at: two of unequal length with a common beginning."""

from transformers import PretrainedConfig

SHARED = 4
"""Number of tokens that both rows begin with."""

ENDS = (3, 6)
"""Number of tokens that follow in each of the two rows."""


def two_rows(config: PretrainedConfig) -> tuple[list[int], list[int]]:
    """The short and the long row: tokens from all over the vocabulary, none of them special."""
    decoder = config.get_text_config(decoder=True)
    values = [*config.to_dict().items(), *decoder.to_dict().items()]
    special = [value for key, value in values if key.endswith(("_token_id", "_token_index"))]
    count = SHARED + sum(ENDS)
    step = max(1, decoder.vocab_size // (2 * count))
    tokens = [token for token in range(step // 2, decoder.vocab_size, step) if token not in special][:count]
    return tokens[: SHARED + ENDS[0]], tokens[:SHARED] + tokens[SHARED + ENDS[0] :]
