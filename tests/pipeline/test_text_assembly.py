# SPDX-License-Identifier: MIT
from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from pipeline.text_assembly import Piece, TextAssembler, TokenRecord
from pipeline.tokenizer import TextStream


class Words:
    """A stream in which token i stands for the i-th word."""

    def __init__(self, words: list[str]) -> None:
        self._words = words

    def push(self, token_id: int) -> str:
        return self._words[token_id]


def assemble(words: list[str], *stop: str) -> tuple[list[Piece], bool]:
    """The pieces of a text, and whether a stop sequence ended it."""
    assembler = TextAssembler(cast("TextStream", Words(words)), stop)
    pieces = []
    for token_id in range(len(words)):
        pieces.append(assembler.push(TokenRecord(token_id)))
        if pieces[-1].is_stopped:
            return pieces, True
    return [*pieces, assembler.finish()], False


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_text_without_stop_sequences_is_given_out_at_once() -> None:
    pieces, is_stopped = assemble(["It", " was", " a"])
    assert [piece.text for piece in pieces] == ["It", " was", " a", ""]
    assert not is_stopped


def test_a_stop_sequence_across_three_tokens_is_never_seen() -> None:
    pieces, is_stopped = assemble(["one", " tw", "o", " three", " four"], " two th")
    assert is_stopped
    assert [piece.text for piece in pieces] == ["one", "", "", ""]


def test_what_only_looked_like_a_stop_sequence_is_given_out_later() -> None:
    pieces, is_stopped = assemble(["a\n", "b\n", "\n", "c"], "\n\n")
    assert [piece.text for piece in pieces] == ["a", "\nb", ""]
    assert is_stopped
    pieces, is_stopped = assemble(["a\n", "b\n"], "\n\n")
    assert [piece.text for piece in pieces] == ["a", "\nb", "\n"]
    assert not is_stopped


def test_the_earliest_of_several_stop_sequences_counts() -> None:
    pieces, _ = assemble(["abcdef"], "ef", "cd", "def")
    assert text_of(pieces) == "ab"


def test_tokens_come_with_their_text_and_those_of_the_stop_sequence_do_not() -> None:
    pieces, _ = assemble(["ab", "", "c", "STO", "P"], "STOP")
    tokens = [(token.token_id, token.offset) for piece in pieces for token in piece.tokens]
    assert tokens == [(0, 0), (1, 2), (2, 2)]


def test_tokens_without_text_come_at_the_end() -> None:
    pieces, _ = assemble(["ab", ""])
    assert [token.token_id for piece in pieces for token in piece.tokens] == [0, 1]


@given(
    words=st.lists(st.text("abc", max_size=3), max_size=12),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_the_text_is_all_before_the_first_stop_sequence(words: list[str], stop: list[str]) -> None:
    pieces, is_stopped = assemble(words, *stop)
    so_far = ""
    for count in range(len(words) + 1):
        so_far = "".join(words[:count])
        ends = [so_far.find(each) for each in stop if each in so_far]
        if ends:
            assert is_stopped
            assert text_of(pieces) == so_far[: min(ends)]
            return
    assert not is_stopped
    assert text_of(pieces) == so_far
