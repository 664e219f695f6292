from decimal import Decimal

import msgspec
import pytest

from contracts.usage import Candidate, Piece, PieceRate, Rates, Tier, Usage, piece_rate

IMAGES = (
    PieceRate("image", "0.04"),
    PieceRate("image", "0.08", size="1024x1024"),
    PieceRate("image", "0.06", quality="hd"),
    PieceRate("image", "0.12", size="1024x1024", quality="hd"),
    PieceRate("character", "9"),
)


@pytest.mark.parametrize(
    ("size", "quality", "rate"),
    [
        ("", "", "0.04"),
        ("512x512", "", "0.04"),
        ("1024x1024", "", "0.08"),
        ("1024x1024", "low", "0.08"),
        ("512x512", "hd", "0.06"),
        ("1024x1024", "hd", "0.12"),
    ],
)
def test_the_rate_that_fits_size_and_quality_best_counts(size: str, quality: str, rate: str) -> None:
    assert piece_rate(IMAGES, Piece("image", "1", size, quality)) == Decimal(rate)


def test_what_nobody_priced_costs_as_the_dearest_of_its_unit_and_other_units_nothing() -> None:
    assert piece_rate(IMAGES[1:], Piece("image", "1", "512x512", "low")) == Decimal("0.12")
    assert piece_rate(IMAGES, Piece("video_second", "1")) == 0


def test_all_that_a_cache_read_or_wrote_is_part_of_the_prompt() -> None:
    usage = Usage(1, 10, 2, 3, 20, cache_write_1h_tokens=4)
    assert (usage.prompt_tokens, usage.total_tokens) == (10, 40)


def test_plain_rates_are_written_as_they_were_before_there_were_tiers() -> None:
    """Most calls have nothing else: what is new costs them no byte."""
    plain = Candidate("a", "m", Rates("1", "2"), "id")
    assert (
        msgspec.json.encode(plain) == b'{"provider":"a","model":"m","rates":{"input":"1","output":"2"},"rate_id":"id"}'
    )
    assert msgspec.json.encode(Usage(1, 2)) == b'{"input_tokens":1,"output_tokens":2}'
    whole = Candidate("a", "m", Rates("1", "2", tiers=(Tier(200_000, "2", "4"),), pieces=IMAGES))
    assert msgspec.json.decode(msgspec.json.encode(whole), type=Candidate) == whole
