"""Texts by which a server names tokens: such a text counts where no other token has it."""

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from evaluation_kit import tokenizer
from moslora.evaluation.reading import TokenTexts
from moslora.evaluation.server import Likely

PIECES = ["<unk>", "\u2581Paris", "Paris", "\u2581London", "Rome", "<0xE4>", "<0xB8>"]


@pytest.fixture(scope="module")
def sentencepiece():
    """Of the kind of Llama 2's: two pieces are decoded to "Paris", two bytes to U+FFFD."""
    bpe = Tokenizer(models.BPE({piece: place for place, piece in enumerate(PIECES)}, [], byte_fallback=True))
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return TokenTexts(PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>"))


@pytest.mark.parametrize(
    ("listed", "named"),
    [
        (["Paris", "Rome"], [None, 4]),  # decoded alone, or not: the space is not to be seen
        (["Paris", " London"], [2, 3]),
        (["Paris", " Paris"], [2, 1]),
        (["\u2581Paris", "Paris"], [1, 2]),
        (["<0xE4>", "\u2581London"], [5, 3]),
        (["\ufffd", "London"], [None, 3]),
        (["", "token_id:6"], [None, 6]),
    ],
)
def test_piece_of_sentencepiece_has_its_own_text(listed, named, sentencepiece):
    told = [Likely(token=text) for text in listed]
    tokens = [sentencepiece.token(likely, told) for likely in told]
    assert [None if token == -1 else token for token in tokens] == named


def test_a_token_of_bytes_is_named_by_a_text_of_its_own():
    """Every token whose text is whole and its own, by a count of all texts; with an id each."""
    texts = TokenTexts(tokenizer())
    decoded = [tokenizer().decode([token]) for token in range(len(tokenizer()))]
    for token, text in enumerate(decoded):
        likely = Likely(token=text)
        is_own = "\ufffd" not in text and decoded.count(text) == 1
        assert (texts.token(likely, [likely, Likely(token=" the")]) == token) == is_own, text
        assert texts.token(Likely(token=text, id=token), []) == token
