"""Scene: one corpus, one output, and the runs over it: disturbed, brought to the end, checked."""

import json
import random
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import psutil
from deltalake import write_deltalake

from tests.faults import checker, seams
from tests.faults.checker import Expected, Reader
from tests.faults.cluster import SharedRay, orphans, processes, shared_ray, worker_environment
from tests.faults.driver import Order
from tests.faults.fleet import Driver, Drivers
from tests.faults.proxy import Proxy, Rule, proxy_before
from tests.faults.seams import Fault
from tests.faults.texts import POOL
from tests.faults.world import Key, Place, Texts, corpus, delta_options, write_shard

PROMPTS = {"a": "{{ text }}", "b": "Once more: {{ text }}"}
UNIT_ROWS, IN_FLIGHT = 8, 2
TRIES = 5  # of the same command, until it is done
AGAIN = (-9, 1, 4)  # exit codes after which the same command is given again


@dataclass(kw_only=True)
class Lab:
    """What all scenes share."""

    folder: Path
    drivers: Drivers
    answers: dict[str, Mapping[str, str]] = field(default_factory=dict)  # by prompt, then text: of undisturbed runs
    store: Any = None  # SeaweedFS; None: it was not started
    stack: ExitStack = field(default_factory=ExitStack)
    _ray: SharedRay | None = None
    orders: int = 0
    typical_s: float = 2.0  # of an undisturbed run on this machine at this moment

    @property
    def ray(self) -> SharedRay:
        """A Ray, started when the first scene wants one."""
        if self._ray is None:
            self._ray = self.stack.enter_context(shared_ray(self.folder / "ray", self.store.environment()))
        return self._ray


@dataclass(kw_only=True)
class Scene:
    """See the module."""

    lab: Lab
    folder: Path
    rng: random.Random
    on_s3: bool
    runner: str  # threads, ray or vllm
    without: str = ""  # a safeguard that is taken out of every driver
    prompt: str = "a"
    words: list[str] = field(default_factory=list)  # of every command from here on
    tweaks: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    dead: dict[str, str] = field(default_factory=dict)  # texts that end as dead letters, and of which type
    foreign: set[str] = field(default_factory=set)
    inputs: list[dict[Key, str | None]] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)  # of all runs
    struck: list[str] = field(default_factory=list)  # the faults that did happen
    drivers: list[Driver] = field(default_factory=list)
    spare: int = 0  # prompts that may be asked once more than they are many
    wrong: list[str] = field(default_factory=list)
    proxy: Proxy | None = None
    checked: bool = False
    may_lose: bool = False  # files are taken away from behind, which a run may notice
    own_ray: bool = False  # each run starts a Ray of its own
    answered: list[tuple[int, set[str]]] = field(default_factory=list)  # after each kill: prompts asked, keys in files
    _drawn: set[str | None] = field(default_factory=set)
    _prompts: set[str] = field(default_factory=set)
    stack: ExitStack = field(default_factory=ExitStack)

    # ------------------------------------------------------------------------------------------------- before

    def set_up(self, *, special: tuple[str, ...] = (), sink: Path | None = None) -> None:
        """A corpus of some shards, and where the output goes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.runner != "threads":
            (self.armoury / seams.ASKED).unlink(missing_ok=True)
        name = self.folder.name
        if self.on_s3:
            client, options = self.lab.store.client(), delta_options(self.lab.store.environment())
            self.proxy = self.stack.enter_context(proxy_before(self.lab.store.endpoint))
            self.environment |= self.lab.store.environment()
            self.source = Place(f"s3://faults/{name}/in", client, options)
            self.sink = Place(f"s3://faults/{name}/out", client, options)
        else:
            self.source, self.sink = Place(str(self.folder / "in")), Place(str((sink or self.folder) / "out"))
        count = 24 if self.runner == "vllm" else 84
        texts: Texts = list(self.rng.sample(POOL, count))
        texts[self.rng.randrange(count)] = texts[self.rng.randrange(count)]  # one prompt twice
        for text in ("", None, None, *special):
            texts.insert(self.rng.randrange(len(texts)), text)
        cuts = sorted(self.rng.sample(range(count // 8, count - count // 10, 2), 2))
        self.shards: dict[str, Texts] = {
            "a.parquet": texts[: cuts[0]],
            "b.jsonl": texts[cuts[0] : cuts[1]],
            "c/d.parquet": texts[cuts[1] :],
        }
        for shard, rows in self.shards.items():
            write_shard(self.source, shard, rows)
        self.inputs.append(corpus(self.source))
        self.reader = Reader(self.sink)
        self.stack.enter_context(self.reader.looking())

    def change(self, shard: str, texts: Texts | None) -> None:
        """Another content of a shard; None: it is deleted."""
        if texts is None:
            self.source.delete(shard)
        else:
            write_shard(self.source, shard, texts)
        self.inputs.append(corpus(self.source))

    def edited(self, shard: str) -> Texts:
        """A shard with rows taken out, exchanged and added, and most kept."""
        texts = list(self.shards[shard])
        del texts[self.rng.randrange(len(texts))]
        for text in self.more(3):
            texts[self.rng.randrange(len(texts))] = text
        return [*self.more(1), *texts, *self.more(self.rng.randint(0, 9))]

    def more(self, count: int) -> Texts:
        """Texts that the corpus does not have."""
        there = {text for rows in self.inputs for text in rows.values()} | self._drawn
        found = self.rng.sample([text for text in POOL if text not in there], count)
        self._drawn.update(found)
        return list(found)

    def happened(self, what: str) -> None:
        """A fault that no seam tells of."""
        self.struck.append(what)

    def wipe(self, below: str) -> None:
        """All files of a folder of the output are lost."""
        place = self.sink.below(below)
        for name in place.names():
            place.delete(name)

    def forget_alive(self) -> None:
        """No run tells any more that it is alive."""
        runs = self.sink.below("runs")
        for name in runs.names():
            if name.endswith("alive.json"):
                runs.delete(name)

    def ledger_twice(self) -> None:
        """Every receipt a second time, as by commits that were written again because their answers were lost."""
        place = self.sink.below("ledger")
        if any(name.endswith(".parquet") for name in place.names()):
            rows = pl.read_delta(place.uri, storage_options=place.options).to_arrow()
            write_deltalake(place.uri, rows, mode="append", storage_options=place.options)

    # --------------------------------------------------------------------------------------------------- runs

    def start(self, *words: str, who: str = "") -> Driver:
        """The command, in a process of its own. What is armed will strike it."""
        self.lab.orders += 1
        self._prompts.add(self.prompt)
        through = {"AWS_ENDPOINT_URL": self.proxy.endpoint} if self.proxy and self.proxy.rules else {}
        if self.runner != "threads":
            (self.armoury / seams.TWEAKS).write_text(json.dumps(self.tweaks))
        sampled = {"latency_s": 0.03}
        order = Order(
            number=self.lab.orders,
            words=[
                *("--config-dir", str(self.lab.folder / "conf"), f"+job=say_{self.prompt}", "tracking=none"),
                *("engine=simulated" if self.runner != "vllm" else "engine=vllm", "max_error_rate=1"),
                *(f"source.uri={self.source.uri}", f"sink.uri={self.sink.uri}", f"unit.rows={UNIT_ROWS}"),
                # As many units are in an engine as its window needs: with this one, IN_FLIGHT.
                *(f"engine.units_in_flight={IN_FLIGHT}", f"batching.max_num_seqs={UNIT_ROWS * 3 // 4}"),
                *(f"engine.simulated.{key}={value}" for key, value in sampled.items() if self.runner != "vllm"),
                *self.words,
                *words,
            ],
            folder=str(self.folder),
            environment={
                seams.VARIABLE: str(self.armoury),
                seams.WHO: who,
                **self.environment,
                **through,
                **self._ray(),
            },
            threads=self.runner == "threads",
            tweaks=self.tweaks,
            without=self.without,
        )
        driver = self.lab.drivers.start(order, who or "the driver")
        self.drivers.append(driver)
        if self.proxy:
            self.proxy.kill = lambda: driver.send(signal.SIGKILL)
        return driver

    @property
    def armoury(self) -> Path:
        """Where the plan of faults lies: on a Ray that scenes share, its workers look at one place."""
        return self.folder if self.runner == "threads" or self.own_ray else self.lab.ray.armoury

    def _ray(self) -> dict[str, str]:
        if self.own_ray:
            return worker_environment(self.folder)
        return {} if self.runner == "threads" else {"RAY_ADDRESS": self.lab.ray.address}

    def processes(self, words: str) -> list[psutil.Process]:
        """Ray's processes with these words in their command line."""
        return processes(self.drivers[-1].pid if self.own_ray else self.lab.ray.process.pid, words)

    def arm(self, *faults: Fault) -> None:
        seams.arm(self.armoury, *faults)

    def ended(self, driver: Driver, *allowed: int, seconds: float = 240) -> int:
        """The exit code of a run that was disturbed; wrong if it is none of `allowed`."""
        code = driver.wait(seconds)
        self.codes.append(code)
        self.struck += [what for what in seams.fired(self.armoury) if not what.startswith("linger")]
        self.arm()
        if self.proxy and self.proxy.rules:
            self.struck += [f"{rule.effect} at request {rule.nth}" for rule in self.proxy.rules if rule.struck]
            self.proxy.rules = []
        if code == -9:
            self.wrong += checker.after_a_kill(self.sink)
            if self.runner == "threads":  # workers of a Ray go on for a while
                self.answered.append((len(seams.asked(self.armoury)), checker.finished(self.sink)))
        if "have lost a file" in driver.log() and not self.may_lose:
            self.wrong.append("I3 a run found that a current file was lost")
        if code not in allowed:
            self.wrong.append(f"exit {code} where {allowed} is due: {last_words(driver.log())}")
        return code

    def run(self, *words: str) -> int:
        """An undisturbed run that must be done."""
        return self.ended(self.start(*words), 0)

    def hit(self, fault: Fault, *words: str, allowed: tuple[int, ...] = (-9, 0)) -> int:
        """A run with a fault in its way."""
        self.arm(fault)
        if fault.do == "kill":
            self.spare += in_flight(self.runner)
        return self.ended(self.start(*words), *allowed)

    def through(self, *rules: Rule) -> None:
        """What happens to the next run's requests."""
        assert self.proxy is not None
        self.proxy.rules = list(rules)

    def kill(self, driver: Driver) -> None:
        """SIGKILL from outside, if it still runs."""
        self.spare += in_flight(self.runner)
        self.signal(driver, signal.SIGKILL)
        self.ended(driver, -9, 0)

    def signal(self, driver: Driver, number: signal.Signals) -> None:
        if driver.code is None:
            driver.send(number)
            self.struck.append(number.name)

    def to_the_end(self, *words: str) -> None:
        """The same command, until it is done."""
        for _ in range(TRIES):
            code = self.ended(self.start(*words), 0, *AGAIN)
            if code not in AGAIN:
                return
        self.wrong.append(f"not done after {TRIES} times: {self.codes}")

    # ------------------------------------------------------------------------------------------------- checks

    def check(self) -> None:
        """Everything that must hold now that the last run has ended well."""
        self.checked = True
        self.wrong += [
            f"process {one.pid} {one.name()} outlived its driver"
            for one in orphans({driver.pid for driver in self.drivers})
        ]
        answers = None if self.runner == "vllm" else self.lab.answers[self.prompt]
        expected = Expected(answers, self.dead, frozenset(self.foreign))
        self.wrong += checker.at_the_end(self.source, self.sink, expected)
        self.wrong += self.reader.history(self.inputs, self.dead)
        if self.runner == "vllm":
            self._verify()
            return
        asked = seams.asked(self.armoury)
        if len(asked) - len(set(asked)) > self.spare + 1:  # one prompt is there twice
            self.wrong.append(
                f"I5 {len(asked)} prompts were asked, {len(set(asked))} different ones, spare {self.spare}"
            )
        if len(self.inputs) == len(self._prompts) == 1 and not self.may_lose:
            again = {key for count, keys in self.answered for key in keys.intersection(asked[count:])}
            if len(again) > 1:  # as above
                self.wrong.append(f"I5 {len(again)} prompts were asked again whose answers lay there")
        before = checker.at_rest(self.sink)
        self.ended(self.start(), 0)
        self._verify()
        if checker.at_rest(self.sink) != before:
            self.wrong.append("I6 the same command once more changed the output")
        if len(seams.asked(self.armoury)) != len(asked):
            self.wrong.append("I6 the same command once more asked prompts")

    def _verify(self) -> None:
        """The command that users have for it says so, too. Files that are not the pipeline's it rightly tells."""
        if self.foreign:
            return
        self.lab.orders += 1
        order = Order(
            number=self.lab.orders,
            words=[f"sink.uri={self.sink.uri}", "format=json"],
            folder=str(self.folder),
            environment={seams.VARIABLE: str(self.armoury), **self.environment},
            verify=True,
        )
        driver = self.lab.drivers.start(order, "verify")
        if driver.wait() != 0:
            self.wrong.append(f"verify is not content: {told(driver.log())}")


def told(log: str) -> str:
    """The findings in the document that verify leaves as its last line."""
    try:
        checks = json.loads(log[log.rindex('\n{"') if '\n{"' in log else 0 :])["checks"]
    except (ValueError, KeyError):
        return last_words(log)
    return " / ".join(f"{check['name']}: {one}" for check in checks for one in check["findings"])[-400:]


def in_flight(runner: str) -> int:
    """Prompts that a killed driver may have asked in vain: its units in the engine, and those that wait for a write.

    Twice as many as the engine's window needs are in the hands of a replica. It needs IN_FLIGHT, or one more where a
    shard of a few rows makes units look small.
    """
    return UNIT_ROWS * (2 * (IN_FLIGHT + 1) + (0 if runner == "threads" else 4))


def last_words(log: str) -> str:
    return " / ".join(line for line in log.splitlines()[-4:])[-400:]
