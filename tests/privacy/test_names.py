"""Names and numbers of a text are found, and count where every token was read."""

from __future__ import annotations

from atlas_flwr.data import resolve_model, tokenizer_of
from atlas_flwr.data.tokens import pieces
from atlas_flwr.privacy.names import names_read, places_of_names


def test_names_numbers_and_addresses_are_found_by_their_tokens():
    words = ["Call", " Ann", "-Ma", "rie", " at", " 07", "786", " 2", ".", "5", ", ok"]
    found = places_of_names(words)
    assert [[words[i] for i in places] for places in found] == [
        [" Ann", "-Ma", "rie"],
        [" 07", "786"],
        [" 2", ".", "5"],
    ]
    (mail,) = places_of_names(["to", " x1", "@y", ".org", " now"])
    assert mail == [1, 2, 3]  # its number is a part of it, and no other
    assert places_of_names([]) == []


def test_one_is_read_where_all_of_it_is():
    names = [[[0, 1], [3]], []]
    truths = [[5, 6, 7, 8], [1]]
    assert names_read([[5, 6, 0, 0], [1]], truths, names) == 0.5
    assert names_read([[5, 0, 7, 0], [1]], truths, names) == 0
    assert names_read(truths[1:], truths[1:], names[1:]) is None


def test_pieces_of_all_tokenizers_make_the_text_again():
    for model in ("tiny", "tiny-bert"):
        tokenizer = tokenizer_of(resolve_model(model))
        ids = tokenizer("where is 42 now?", add_special_tokens=False)["input_ids"]
        assert "".join(pieces(tokenizer, ids)).strip().startswith("where is 42 now")
