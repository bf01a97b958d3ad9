"""Prices of providers: the worked example of the price list, and a fallback that would be silent."""

from datetime import UTC, date, datetime
from decimal import Decimal

from pipelines.accounts.providers import Offer, is_old, list_price, offers

AT = datetime(2026, 11, 23, tzinfo=UTC)


def by_model(**changes: int) -> dict[str, Offer]:
    tokens = {"rows": 10**6, "prompt_tokens": 400 * 10**6, "output_tokens": 10 * 10**6} | changes
    return {offer.model: offer for offer in offers(**tokens, at=AT)}


def test_a_million_classify_rows_cost_what_the_lists_say() -> None:
    found = by_model()

    assert found["gpt-6-luna"].batch_usd == Decimal("22.5")  # 400 x 0.05 + 10 x 0.25
    assert found["gpt-6-luna"].standard_usd == Decimal(45)
    assert found["claude-haiku-5-5"].batch_usd == Decimal("22.5")
    assert found["gemini-2.5-flash-lite"].batch_usd == Decimal(22)
    assert found["amazon.nova-micro-v1:0"].batch_usd == Decimal("7.7")  # 400 x 0.0175 + 10 x 0.07


def test_a_standard_price_that_the_package_gives_for_a_batch_is_no_batch_price() -> None:
    asked = list_price("groq", "llama-3.1-8b-instant", batch=True, prompt_tokens=400, at=AT)
    standard = list_price("groq", "llama-3.1-8b-instant", batch=False, prompt_tokens=400, at=AT)
    assert asked is not None
    assert standard is not None
    assert (asked.input, asked.output) == (standard.input, standard.output)  # what the package does, in silence

    offer = by_model()["llama-3.1-8b-instant"]

    assert (offer.batch, offer.batch_usd) == (None, None)
    assert offer.standard_usd == Decimal("20.8")
    assert offer.note == "no batch price is listed"


def test_a_batch_price_that_the_package_lacks_comes_from_our_dated_list() -> None:
    offer = by_model()["amazon.nova-micro-v1:0"]

    assert offer.batch is not None
    assert offer.batch.source.startswith("litellm")
    assert offer.batch.date == "2026-11-23"
    assert offer.standard is not None
    assert offer.standard.source.startswith("genai-prices")


def test_long_prompts_are_priced_by_the_length_of_a_row_not_of_the_corpus() -> None:
    short = by_model(rows=1000, prompt_tokens=10**6, output_tokens=0)["claude-haiku-5-5"].standard_usd
    long = by_model(rows=5, prompt_tokens=10**6, output_tokens=0)["claude-haiku-5-5"].standard_usd

    assert short == Decimal("0.1")
    assert long is not None
    assert long > short  # 200,000 tokens a row: a tier of its own above 100,000


def test_a_model_that_the_package_does_not_know_has_no_price() -> None:
    assert list_price("openai", "gpt-0-none-such", batch=False, prompt_tokens=400, at=AT) is None


def test_a_price_is_old_after_two_months_or_without_a_date() -> None:
    price = by_model()["amazon.nova-micro-v1:0"].batch
    assert price is not None

    assert not is_old(price, date(2027, 1, 20))
    assert is_old(price, date(2027, 1, 25))
    notes = {
        offer.note for offer in offers(rows=1, prompt_tokens=1, output_tokens=1, at=datetime(2027, 3, 1, tzinfo=UTC))
    }
    assert all(note and "older than 60 days" in note for note in notes)
