"""The part of the fault campaign that every change must pass, and the proof that it can fail. `make faults` runs all.

A failing seed is repeated by `make faults SEED=n`.
"""

import re
from collections.abc import Iterator

import pytest

from tests.faults import disk, kinds
from tests.faults.campaign import Result, kind_of, lab, play, seeds_of, unstruck
from tests.faults.mutations import WITHOUT
from tests.faults.scene import Lab

IN_CI = ("fence", "leftovers are removed")  # safeguards that are taken out on every change
PLAYED: dict[int, Result] = {}
TRIES = 4  # seeds of a kind, of which one must tell that a safeguard is missing


def _few() -> list[int]:
    """One seed for each second kind on threads that is on the disk, a few on S3, and two on a Ray."""
    on_disk = seeds_of(runners=("threads",), store="disk", times=1)[::2]
    return [*on_disk, *seeds_of(runners=("threads",), store="s3", times=1)[::10], *CHEAP_ON_RAY]


CHEAP_ON_RAY = [
    seeds_of(words=words, store="disk", times=9)[0] for words in ("Ray: write worker killed", "Ray: driver killed at a")
]


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.mark.parametrize("seed", _few())
def test_after_a_fault_the_same_command_ends_with_each_row_in_one_place(seed: int, laboratory: Lab) -> None:
    if kind_of(seed).name.startswith("disk") and not disk.possible():
        pytest.skip("this user may not mount a file system")
    result = play(laboratory, seed, kind_of(seed))

    assert result.wrong == (), f"make faults SEED={seed}: {result.kind}: {result.faults}"
    PLAYED[seed] = result


def test_25_kinds_of_faults_and_more_did_strike() -> None:
    if len(PLAYED) < len(_few()) * 0.8:
        pytest.skip("not all were played")
    assert len({result.kind for result in PLAYED.values() if result.faults}) >= 25, unstruck(list(PLAYED.values()))


def test_the_seeds_that_are_tried_on_every_change_are_of_25_kinds_and_more() -> None:
    assert len({kind_of(seed).name for seed in _few()}) >= 25


def test_the_whole_campaign_is_of_100_faults_and_more_10_of_them_on_the_real_engine() -> None:
    assert len(seeds_of()) >= 100
    assert len(seeds_of(runners=("vllm",))) >= 10
    assert len({kind.name for kind in kinds.KINDS}) == len(kinds.KINDS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_CI else pytest.mark.slow) for name in WITHOUT]
)
def test_without_a_safeguard_the_campaign_fails(name: str, laboratory: Lab) -> None:
    seeds = seeds_of(words=WITHOUT[name].kind, store="disk", times=3 * TRIES)[:TRIES]
    assert seeds

    found = [play(laboratory, seed, kind_of(seed), without=name) for seed in seeds[:1]]
    if not any(re.search(WITHOUT[name].finding, words) for result in found for words in result.wrong):
        found += [play(laboratory, seed, kind_of(seed), without=name) for seed in seeds[1:]]

    told = [words for result in found for words in result.wrong if re.search(WITHOUT[name].finding, words)]
    assert told, f"{WITHOUT[name].kind}: nothing is wrong without {name!r}"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", sorted(set(seeds_of(runners=("threads", "ray"))) - set(_few())))
def test_after_any_fault_the_same_command_ends_with_each_row_in_one_place(seed: int, laboratory: Lab) -> None:
    result = play(laboratory, seed, kind_of(seed))

    assert result.wrong == (), f"make faults SEED={seed}: {result.kind}: {result.faults}"
