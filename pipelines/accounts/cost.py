"""What the devices cost, and what that makes of a token. Money is Decimal, and no float enters a sum of it.

dollars = device-seconds held x dollars per hour / 3600. A device is held from the moment at which it is reserved
until it is given back, at work or not: that is what is billed.

How dollars fall on input and output: every token that the engine computed bears the same share, whether it was
read or written. A forward pass costs about 2 x parameters FLOPs per token in both (Kaplan et al. 2020,
arXiv 2001.08361, section 2.1). Cached tokens were not computed and bear nothing; they make input cheaper. So

    per computed token = dollars / (prompt - cached + output)
    input  = per computed token x (prompt - cached) / prompt        dollars per prompt token, cached ones included
    output = per computed token                                     dollars per output token
    total  = dollars / (prompt + output)

and input x prompt tokens + output x output tokens = dollars. Decoding that waits for memory instead of arithmetic
costs more than this says: it is a rule of attribution, not a measurement of prefill and decode.

Billed is all of it; useful is what remains of a dollar without start-up, idling, tail, failures and shutdown, as
attribution.py splits the time. docs/cost.md has each rule in words.
"""

import re
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, localcontext

from pipelines.accounts.attribution import NS, Parts
from pipelines.config import DevicePrice, PricingConfig, UserError

CPU = "cpu"
_HOUR_S = Decimal(3600)
_MILLION = Decimal(10**6)
_DIGITS = 60  # of sums of money: those of a table of 38 digits fit, and nothing is rounded on the way
OLD_DAYS = 90  # prices of GPUs have moved by a seventh in half that time (conf/pricing/on_demand.yaml)


def price_of(device_name: str | None, pricing: PricingConfig) -> DevicePrice:
    """The price of one device: the first key of `pricing.devices` that stands in its name as a whole word.

    Case is set aside; whole words, so that A10 does not price an A100. None: a machine without GPU, key `cpu`.

    Raises:
        UserError: no key fits.
    """
    name = device_name or CPU
    for key, price in pricing.devices.items():
        if re.search(rf"(?<![a-z0-9]){re.escape(key.lower())}(?![a-z0-9])", name.lower()):
            return price
    raise UserError(
        f"pricing={pricing.name} has no price for the device {name!r}. Its keys: "
        f"{', '.join(pricing.devices) or 'none'}. Add one that stands in that name to conf/pricing/{pricing.name}.yaml."
    )


def dollars(device_seconds: Decimal, price: DevicePrice) -> Decimal:
    """What so many device-seconds cost; unrounded."""
    with localcontext(prec=_DIGITS):
        return device_seconds * price.usd_per_hour / _HOUR_S


def dollars_of(device_ns: int, price: DevicePrice) -> Decimal:
    """What so many nanoseconds of devices cost; unrounded."""
    with localcontext(prec=_DIGITS):
        return dollars(Decimal(device_ns) / NS, price)


def exact(value: Decimal) -> str:
    """Digits to the 18th behind the point, as the table of costs has them, and no zeros at the end."""
    with localcontext(prec=_DIGITS):
        return format(round(value, 18).normalize(), "f")


def old_price(price: DevicePrice, *, today: date) -> str | None:
    """In one line, that the price is older than OLD_DAYS; None: it is not."""
    days = (today - date.fromisoformat(price.date)).days
    if days <= OLD_DAYS:
        return None
    return (
        f"warning: the price of ${price.usd_per_hour} an hour is {days} days old ({price.source}, {price.date}): "
        "look it up, and set pricing.devices"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What a run's tokens were, for its bill."""

    prompt: int = 0  # of the rows that were asked, cached ones included
    cached: int = 0
    output: int = 0
    saved_prompt: int = 0  # of the rows that were not asked
    saved_output: int = 0
    rows_carried: int = 0  # which those were: taken from the output as it was,
    rows_shared: int = 0  # or with the same prompt as another

    @property
    def computed(self) -> int:
        """What the engines read and wrote."""
        return self.prompt - self.cached + self.output


@dataclass(frozen=True, slots=True, kw_only=True)
class PerMillion:
    """Dollars per million tokens. None where there were no such tokens."""

    input: Decimal | None  # prompt tokens, cached ones included
    output: Decimal | None
    total: Decimal | None  # prompt and output tokens together

    @classmethod
    def of(cls, usd: Decimal, tokens: Tokens) -> "PerMillion":
        """So many dollars for these tokens; the rule is this module's docstring."""
        each = usd / tokens.computed * _MILLION if tokens.computed else None
        every = tokens.prompt + tokens.output
        read = tokens.prompt - tokens.cached
        return cls(
            input=each * read / tokens.prompt if each is not None and tokens.prompt else None,
            output=each if tokens.output else None,
            total=usd / every * _MILLION if every else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What a run's devices cost, and what for. None: not known, or there was nothing of the kind."""

    device: str
    price: DevicePrice
    parts: Parts
    device_seconds: Decimal  # held, at work or not
    usd: Decimal
    usd_per_million_input: Decimal | None  # billed
    usd_per_million_output: Decimal | None
    usd_per_million_total: Decimal | None
    useful_usd_per_million_input: Decimal | None
    useful_usd_per_million_output: Decimal | None
    useful_usd_per_million_total: Decimal | None
    saved_by_cache_usd: Decimal | None  # estimates: at the useful price of this run
    saved_by_dedup_usd: Decimal | None
    saved_by_carry_usd: Decimal | None

    def usd_of(self, part_ns: int) -> Decimal:
        """What a part of it cost."""
        return dollars_of(part_ns, self.price)


def bill(parts: Parts, price: DevicePrice, tokens: Tokens, *, device_name: str | None) -> Bill:
    """The bill for devices whose time went into these parts, and that answered with these tokens."""
    usd, useful_usd = dollars_of(parts.total, price), dollars_of(parts.useful, price)
    billed, useful = PerMillion.of(usd, tokens), PerMillion.of(useful_usd, tokens)
    not_asked = _saved(useful, tokens)
    rows = tokens.rows_shared + tokens.rows_carried
    return Bill(
        device=device_name or CPU,
        price=price,
        parts=parts,
        device_seconds=Decimal(parts.total) / NS,
        usd=usd,
        usd_per_million_input=billed.input,
        usd_per_million_output=billed.output,
        usd_per_million_total=billed.total,
        useful_usd_per_million_input=useful.input,
        useful_usd_per_million_output=useful.output,
        useful_usd_per_million_total=useful.total,
        saved_by_cache_usd=useful_usd / tokens.computed * tokens.cached if tokens.computed and tokens.cached else None,
        saved_by_dedup_usd=not_asked * tokens.rows_shared / rows if not_asked and tokens.rows_shared else None,
        saved_by_carry_usd=not_asked * tokens.rows_carried / rows if not_asked and tokens.rows_carried else None,
    )


def _saved(useful: PerMillion, tokens: Tokens) -> Decimal | None:
    """What the rows that were not asked would have cost; None: no row was asked that would tell."""
    if useful.input is None or useful.output is None:
        return None
    return (useful.input * tokens.saved_prompt + useful.output * tokens.saved_output) / _MILLION
