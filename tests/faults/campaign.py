"""Campaign: seeds to scenes, each disturbed, brought to its end and checked; a table of what came of it.

A seed names a kind and all that is chosen at random in its scene, so that one command repeats it.
"""

import json
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import weed_server
from tests.faults import kinds
from tests.faults.fleet import Drivers
from tests.faults.scene import PROMPTS, Lab, Scene
from tests.faults.texts import BAD, HANG, POISON, POOL
from tests.faults.world import table, write_shard

JOB = """# @package job
name: say
messages:
  - {{role: user, content: "{prompt}"}}
output: {{kind: text, column: answer}}
sampling: {{max_tokens: 8, temperature: 0}}
"""


RUNNERS = ("threads", "ray", "vllm")
SHARE_ON_S3 = 0.35  # of the kinds that may be on either: such a run takes three times as long


@dataclass(frozen=True)
class Result:
    """What came of one seed."""

    seed: int
    kind: str
    where: str
    faults: tuple[str, ...]
    runs: int
    codes: tuple[int, ...]
    versions: int  # of the table of answers that were looked at
    rows: int
    seconds: float
    wrong: tuple[str, ...]


@contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """Everything that scenes share, started once."""
    (folder / "conf" / "job").mkdir(parents=True)
    for name, prompt in PROMPTS.items():
        (folder / "conf" / "job" / f"say_{name}.yaml").write_text(JOB.format(prompt=prompt))
    (folder / "weed").mkdir()
    with ExitStack() as stack:
        store = stack.enter_context(weed_server(folder / "weed"))
        made = Lab(folder=folder, drivers=Drivers(), store=store, stack=stack)
        stack.callback(made.drivers.close)
        made.store.client().create_bucket(Bucket="faults")
        yield _with_answers(made)


def _with_answers(made: Lab) -> Lab:
    """Undisturbed runs over all texts that there are."""
    for prompt in PROMPTS:
        folder = made.folder / f"undisturbed-{prompt}"
        scene = Scene(lab=made, folder=folder, rng=random.Random(0), on_s3=False, runner="threads", prompt=prompt)
        scene.set_up()
        for name in scene.source.names():
            scene.source.delete(name)
        write_shard(scene.source, "all.parquet", (*POOL, BAD, HANG, POISON))
        began = time.monotonic()
        scene.run("unit.rows=60", "engine.simulated.latency_s=0")
        made.typical_s = time.monotonic() - began
        assert scene.wrong == [], scene.wrong
        made.answers[prompt] = {row["text"]: row["answer"] for row in table(scene.sink.below("data"))}
        scene.stack.close()
        assert len(made.answers[prompt]) == len(POOL) + 3
    return made


def kind_of(seed: int) -> kinds.Kind:
    return kinds.KINDS[seed % len(kinds.KINDS)]


def on_store(kind: kinds.Kind, rng: random.Random) -> str:
    """Where a scene is: the first that a seed decides."""
    drawn = "s3" if rng.random() < SHARE_ON_S3 else "disk"
    return drawn if drawn in kind.stores else kind.stores[0]


def seeds_of(
    *, runners: Collection[str] = ("threads", "ray", "vllm"), words: str = "", store: str = "", times: int = 0
) -> list[int]:
    """The seeds of a campaign over the kinds that these words name; `times`: of each kind, 0: as it says itself."""
    count = len(kinds.KINDS)
    return sorted(
        number + count * turn
        for number, one in enumerate(kinds.KINDS)
        if one.runner in runners and words in one.name
        for turn in range(times or one.times)
        if store in ("", on_store(one, random.Random(number + count * turn)))
    )


def play(made: Lab, seed: int, kind: kinds.Kind, *, without: str = "") -> Result:
    """One seed."""
    rng, began = random.Random(seed), time.monotonic()
    on_s3 = on_store(kind, rng) == "s3"
    # Polars finds no table below a folder with a space, and to Hydra a comma parts two values.
    folder = made.folder / "-".join(["seed", str(seed), *re.findall(r"\w+", without)])
    scene = Scene(lab=made, folder=folder, rng=rng, on_s3=on_s3, runner=kind.runner, without=without)
    try:
        with scene.stack:
            kind.disturb(scene)
            if not scene.checked:
                scene.to_the_end()
                scene.check()
    except Exception as error:  # noqa: BLE001 – a finding like any other
        scene.wrong.append(" ".join(f"{type(error).__name__}: {error}".split())[-600:] + where_in(error))
    _kill_left(scene)
    if not scene.wrong:
        shutil.rmtree(folder, ignore_errors=True)
    return Result(
        seed=seed,
        kind=kind.name,
        where="S3" if on_s3 else "disk",
        faults=tuple(scene.struck),
        runs=len(scene.codes),
        codes=tuple(scene.codes),
        versions=scene.reader.versions if hasattr(scene, "reader") else 0,
        rows=sum(len(rows) for rows in scene.shards.values()) if hasattr(scene, "shards") else 0,
        seconds=time.monotonic() - began,
        wrong=tuple(scene.wrong),
    )


def where_in(error: BaseException) -> str:
    """The lines of ours that an error came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "tests/faults" in frame.filename]
    return "".join(f" < {Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-3:]))


def _kill_left(scene: Scene) -> None:
    """No process of a scene outlives it."""
    for driver in scene.drivers:
        if driver.code is None:
            driver.send(signal.SIGKILL)


def unstruck(results: Sequence[Result]) -> list[str]:
    """Kinds of which no fault happened at any of their seeds: a step that has another name now, or is taken no more."""
    struck = {result.kind for result in results if result.faults}
    return sorted({result.kind for result in results} - struck)


def tabled(results: Sequence[Result]) -> str:
    """What came of the kinds, for the docs."""
    lines = ["| kind of fault | on | faults | runs | versions read | wrong |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(result.kind for result in results):
        of = [result for result in results if result.kind == name]
        where = ", ".join(sorted({result.where for result in of}))
        counts = (sum(len(r.faults) for r in of), sum(r.runs for r in of), sum(r.versions for r in of))
        wrong = sum(bool(r.wrong) for r in of)
        lines.append(f"| {name} | {where} | {counts[0]} | {counts[1]} | {counts[2]} | {wrong} |")
    return "\n".join(lines)


def main(words: Sequence[str]) -> int:
    """`python -m tests.faults [SEED …] [times=N] [runner=threads,ray,vllm] [store=disk|s3] [kind=WORDS]`"""
    keys = dict(word.split("=", 1) for word in words if "=" in word)
    runners = keys["runner"].split(",") if "runner" in keys else RUNNERS
    chosen = seeds_of(
        runners=runners, words=keys.get("kind", ""), store=keys.get("store", ""), times=int(keys.get("times", "0"))
    )
    seeds = [int(word) for word in words if "=" not in word] or chosen
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    results = []
    with lab(folder) as made:
        for seed in seeds:
            result = play(made, seed, kind_of(seed), without=keys.get("without", ""))
            results.append(result)
            print(
                f"seed {result.seed:3} {result.seconds:5.1f} s {result.where:4} {result.kind}: "
                f"{'; '.join(result.faults) or 'no fault happened'}; exits {result.codes}"
                + "".join(f"\n     WRONG: {what}" for what in result.wrong[:6]),
                flush=True,
            )
    print("\n" + tabled(results) + "\n")
    wrong = [result.seed for result in results if result.wrong]
    summary = {
        "campaign": "faults",
        "seeds": len(results),
        "faults": sum(len(result.faults) for result in results),
        "kinds": len({result.kind for result in results if result.faults}),
        "runs": sum(result.runs for result in results),
        "rows_checked": sum(result.rows for result in results),
        "versions_read": sum(result.versions for result in results),
        "seconds": round(sum(result.seconds for result in results)),
        "wrong_seeds": wrong,
        "kinds_without_a_fault": unstruck(results),
    }
    print(json.dumps(summary))
    if wrong:
        print(f"what is left of them: {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if wrong or unstruck(results) else 0
