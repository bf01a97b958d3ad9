"""Providers: what their APIs would charge for the same tokens, at standard and at batch prices.

List prices come from the package genai-prices as it is installed (its network refresh is never called), those that it
lacks from a dated list here. Where the package has no batch price it answers with the standard one and does not say so:
two equal prices are therefore told as "no batch price", unless the list here has one. Tokens are those that our
tokenizer counts; a provider's own counts fewer or more, by a tenth or two for English and more for other texts.
Prompt caching at the provider is not counted: in a batch it is best effort.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from importlib import metadata
from types import MappingProxyType

from genai_prices import Usage, calc_price

OLD_DAYS = 60  # a price older than this is told as such
_PACKAGE = "genai-prices"
_RELEASED: Mapping[str, str] = MappingProxyType({"0.2.3": "2026-11-23"})  # seen on the index on that day
_MILLION = Decimal(10**6)

# Small models, as one would choose them for a corpus: provider as the package calls it, model, how it is shown.
COMPARED = (
    ("openai", "gpt-6-luna", "OpenAI"),
    ("openai", "gpt-5-nano", "OpenAI"),
    ("anthropic", "claude-haiku-5-5", "Anthropic"),
    ("google", "gemini-2.5-flash-lite", "Google"),
    ("mistral", "ministral-8b-latest", "Mistral"),
    ("groq", "openai/gpt-oss-20b", "Groq"),
    ("groq", "llama-3.1-8b-instant", "Groq"),
    ("aws", "amazon.nova-micro-v1:0", "Bedrock"),
    ("aws", "amazon.nova-lite-v1:0", "Bedrock"),
    ("together", "openai/gpt-oss-120b", "Together"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPrice:
    """Dollars per million tokens."""

    input: Decimal
    output: Decimal
    source: str
    date: str | None  # of the source, ISO; None: it does not tell


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one provider's model would charge. None: it has no such price, or none that is known."""

    provider: str
    model: str
    standard: ListPrice | None
    batch: ListPrice | None
    standard_usd: Decimal | None
    batch_usd: Decimal | None
    note: str | None  # what to know of these prices


_LITELLM = "litellm 1.109.1, model_prices_and_context_window"
# Batch prices that the package lacks, us-east-1.
OVERLAY = MappingProxyType(
    {
        ("aws", "amazon.nova-micro-v1:0"): ListPrice(
            input=Decimal("0.0175"), output=Decimal("0.07"), source=_LITELLM, date="2026-11-23"
        ),
        ("aws", "amazon.nova-lite-v1:0"): ListPrice(
            input=Decimal("0.03"), output=Decimal("0.12"), source=_LITELLM, date="2026-11-23"
        ),
    }
)


def offers(*, rows: int, prompt_tokens: int, output_tokens: int, at: datetime | None = None) -> list[Offer]:
    """What each provider would charge for `rows` rows with so many tokens in all, at the prices of `at` (now)."""
    when = at or datetime.now(UTC)
    return [_offer(*names, rows, prompt_tokens, output_tokens, when) for names in COMPARED]


def list_price(provider: str, model: str, *, batch: bool, prompt_tokens: int, at: datetime) -> ListPrice | None:
    """The package's price for a row with so many prompt tokens; with `batch` it may be the standard one, unsaid.

    A row's own length counts, since long prompts have tiers of their own. None: the package does not know the model.
    """
    length = max(1, prompt_tokens)
    try:
        found = calc_price(
            Usage(input_tokens=length, output_tokens=length),
            model_ref=model,
            provider_id=provider,
            genai_request_timestamp=at,
            price_context={"processing": "batch"} if batch else None,
        )
    except LookupError:
        return None
    version = metadata.version(_PACKAGE)
    return ListPrice(
        input=found.input_price / length * _MILLION,
        output=found.output_price / length * _MILLION,
        source=f"{_PACKAGE} {version}",
        date=_RELEASED.get(version),
    )


def is_old(price: ListPrice, today: date) -> bool:
    """Whether a price is older than `OLD_DAYS`, or does not tell how old it is."""
    return price.date is None or (today - date.fromisoformat(price.date)).days > OLD_DAYS


def _offer(
    provider: str, model: str, shown: str, rows: int, prompt_tokens: int, output_tokens: int, at: datetime
) -> Offer:
    each = round(prompt_tokens / rows) if rows else 0
    standard = list_price(provider, model, batch=False, prompt_tokens=each, at=at)
    batch = OVERLAY.get((provider, model))
    note = None
    if batch is None:
        asked = list_price(provider, model, batch=True, prompt_tokens=each, at=at)
        if (
            asked is not None
            and standard is not None
            and (asked.input, asked.output)
            != (
                standard.input,
                standard.output,
            )
        ):
            batch = asked
        else:
            note = "no batch price is listed"
    used = [price for price in (standard, batch) if price is not None]
    if any(is_old(price, at.date()) for price in used):
        note = "; ".join(filter(None, [note, f"a price is older than {OLD_DAYS} days, or undated"]))
    return Offer(
        provider=shown,
        model=model,
        standard=standard,
        batch=batch,
        standard_usd=_usd(standard, prompt_tokens, output_tokens),
        batch_usd=_usd(batch, prompt_tokens, output_tokens),
        note=note if standard is not None or batch is not None else "not in the price list",
    )


def _usd(price: ListPrice | None, prompt_tokens: int, output_tokens: int) -> Decimal | None:
    if price is None:
        return None
    return (price.input * prompt_tokens + price.output * output_tokens) / _MILLION
