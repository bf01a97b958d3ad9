import re
import string

from hypothesis import given
from hypothesis import strategies as st

from pipelines.source.units import unit_name

HOSTILE = ["../../x", "/etc/passwd", "a/../../b", "nul\0l", "back\\slash", "..%2f..", "s3://other/x", "-rf", "." * 300]


@given(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=300)), st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_units_name_is_one_safe_file_name_whatever_the_shard_is_called(shard: str, start: int, stop: int) -> None:
    name = unit_name(shard, start, stop)

    assert re.fullmatch(r"[A-Za-z0-9._-]{1,120}", name)
    assert name[0] in string.ascii_letters + string.digits


@given(st.text(), st.text())
def test_two_shards_never_share_a_units_name(one: str, other: str) -> None:
    assert (unit_name(one, 0, 1) == unit_name(other, 0, 1)) == (one == other)
