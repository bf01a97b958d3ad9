"""What a person types, and what they read: one line for every mistake, exit codes as promised, nothing executed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.cli import EXITS, KEYS, command, to_yaml
from pipelines.compose import MOST_JOBS, compose
from pipelines.config import Exit, RunConfig, RunFailed, UserError
from pipelines.config_folder import CONF, GROUPS
from pipelines.config_keys import leaves

ROOT = CONF.parent
JOB = """\
messages: [{role: user, content: "Say something about {{ text }}"}]
output: {kind: text, column: answer}
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's folder with one job in it, named mine."""
    return folder_with(tmp_path / "conf", JOB)


def folder_with(folder: Path, text: str, *, at: str = "job/mine.yaml") -> Path:
    (folder / at).parent.mkdir(parents=True, exist_ok=True)
    (folder / at).write_text(text, "utf-8")
    return folder


def typed(
    capsys: pytest.CaptureFixture[str], *words: str, body: Callable[[RunConfig], Exit] = lambda config: Exit.DONE
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    with pytest.raises(SystemExit) as end:
        command(body, doc="Runs a job.", argv=list(words))
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


WRONG = [
    (["source.uri=x"], "error: no job: say +job=NAME, one of "),
    (["+job=min"], "error: there is no job=min, the nearest is mine; there are "),
    (["+job=../mine"], "error: there is no job=../mine, the nearest is mine; there are "),
    (["mine"], "error: cannot read 'mine' as key=value: did you mean +job=mine?"),
    (
        ["+job=mine", "source.limt=5"],
        "error: there is no key source.limt (=5), the nearest is source.limit; --help lists them",
    ),
    (["+job=mine", "modle=qwen3_8b"], "error: there is no key modle (=qwen3_8b), the nearest is model; --help lists "),
    (["+job=mine", "replica=2"], "error: there is no key replica (=2), the nearest is engine.replicas; --help lists "),
    (["+job=mine", "limit=5"], "error: there is no key limit (=5), the nearest is source.limit; --help lists them"),
    (["+job=mine", "engine.source.uri=a"], "error: there is no key engine.source.uri (=a), the nearest is "),
    (
        ["+job=mine", "seed.x=1"],
        "error: there is no key seed.x (=1) (seed holds no keys), the nearest is seed; --help lists them",
    ),
    (["+job=mine", "engine=vlm"], "error: there is no engine=vlm, the nearest is vllm; there are simulated, vllm"),
    (["+job=mine", "engine=[vllm,simulated]"], "error: there is no engine=['vllm', 'simulated']"),
    (["+job=mine", "engine={kind: vllm}"], "error: there is no engine={'kind': 'vllm'}"),
    (["+job=mine", "engine.kind=vlm"], "error: engine.kind=vlm is not one of vllm, simulated, the nearest is vllm"),
    (["+job=mine", "unit.rows=many"], "error: unit.rows=many is not a whole number"),
    (["+job=mine", "unit.rows=true"], "error: unit.rows=true is not a whole number"),
    (["+job=mine", "unit.rows=0"], "error: unit.rows=0 is not at least 1"),
    (["+job=mine", "max_error_rate=2"], "error: max_error_rate=2 is not at most 1.0"),
    (["+job=mine", "sink.uri=2024"], "error: sink.uri=2024 is not text; put it in quotes"),
    (["+job=mine", "source.uri="], "error: source.uri= is empty: give a local path or s3://bucket/prefix"),
    (["+job=mine", "source.uri=gs://a/b"], "error: source.uri=gs://a/b begins with gs://: give a local path or "),
    (["+job=mine", "source.uri=s3://"], "error: source.uri=s3:// names no bucket: write s3://bucket/prefix"),
    (["+job=mine", "source.uri=???"], "error: source.uri is missing: say source.uri=…"),
    (["+job=mine", "engine.replicas=two"], "error: engine.replicas=two is not a whole number or a list [a,b]"),
    (
        ["+job=mine", "engine.replicas=[4,1]"],
        "error: engine.replicas is (4, 1): give a number from 1 or [min,max], min <= max",
    ),
    (
        ["+job=mine", "job.output={kind: labels, labels: [one]}"],
        "error: job.output.labels is ['one']: a choice needs at least two different labels",
    ),
    (
        ["+job=mine", "job.output={kind: labels, labels: [1, 2]}"],
        "error: job.output.labels.0=1 is not text; put it in quotes (and 1 more)",
    ),
    (
        ["+job=mine", "job.sampling.max_tokens=8192"],
        "error: job.sampling.max_tokens=8192 leaves no room for a prompt in model.max_model_len=8192",
    ),
    (["+job=mine", "sink.uri=out/corpus/answers"], "error: sink.uri=out/corpus/answers lies in source.uri=out/corpus"),
    (["+job=mine", "source.uri=out/mine/data"], "error: source.uri=out/mine/data is this very output"),
    (["+job=mine", "batching=static,dynamic"], "error: batching=static,dynamic is more than one value: add --multirun"),
    (["+job=mine", "source.uri=a b {"], "error: cannot read the value of 'source.uri=a b {': put it in quotes"),
    (["+job=mine", "~source.uri"], "error: cannot read '~source.uri' as key=value"),
    (["+job=mine", "~source.uri=x"], "error: ~source.uri=x: nothing can be taken out of the config"),
    (["+job=mine", "--mulirun"], "error: there is no option --mulirun, the nearest is --multirun; there are "),
    (["+job=mine", "--config-dir"], "error: --config-dir needs a folder"),
    (["+job=mine", "--config-dir", "/no/such"], "error: --config-dir /no/such is no folder"),
    (["+job=mine", "--config-path=x"], "error: there is no option --config-path, the nearest is --config-dir"),
    (["+job=mine", "source.uri=${nope}"], "error: source.uri: Interpolation key 'nope' not found; a literal ${ is "),
    (
        ["+job=mine", "-m", "unit.rows=interval(1,5)"],
        "error: unit.rows=interval(1,5): an interval has no end",
    ),
    (["+job=mine", "-m", "unit.rows=range(1,2000)"], "error: --multirun would run more than 1000 jobs"),
    (["+job=mine", "-m", "sink.uri=a,a"], "error: two jobs of this --multirun would write to a: let sink.uri differ"),
]


@pytest.mark.parametrize(("words", "line"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_a_wrong_command_line_is_answered_in_one_line_and_starts_nothing(
    words: list[str], line: str, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[RunConfig] = []

    def body(config: RunConfig) -> Exit:
        started.append(config)
        return Exit.DONE

    code, out, err = typed(capsys, "--config-dir", str(mine), *words, body=body)

    assert err.startswith(line)
    assert (code, out, err.count("\n"), started) == (2, "", 1, [])


HOSTILE_WORDS = [
    "hydra.run.dir=SENTINEL",
    "+hydra.callbacks.x._target_=pathlib.Path.touch",
    "++hydra.callbacks={x: {_target_: pathlib.Path.touch, self: SENTINEL}}",
    "hydra/launcher=basic",
    "+hydra/job_logging=default",
    "hydra=default",
    "hydra.searchpath=[file:///tmp]",
    "job@hydra.callbacks=mine",
    "++job._target_=venv.create",
    "job.output={_target_: venv.create, env_dir: SENTINEL}",
    "job.output.json_schema={type: object, properties: {a: {_partial_: true}}}",
    "pricing.devices.H100._args_=[SENTINEL]",
    "source.uri=${oc.env:PLANTED_SECRET}",
    "source.uri=${oc.env:PLANTED_SECRET,none}",
    "source.uri=${oc.decode:SENTINEL}",
    "source.uri=${oc.create:SENTINEL}",
    "source.uri=${now:%Y}",
    "source.uri=${hydra:runtime.cwd}",
    "source.uri=${oc.env:${oc.env:PLANTED_SECRET}}",
]


@pytest.mark.parametrize("word", HOSTILE_WORDS)
def test_an_override_that_could_reach_code_or_secrets_is_refused_and_nothing_runs(
    word: str, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sentinel = tmp_path / "sentinel"
    monkeypatch.setenv("PLANTED_SECRET", "planted-value")

    code, out, err = typed(capsys, "--config-dir", str(mine), "+job=mine", word.replace("SENTINEL", str(sentinel)))

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert not sentinel.exists()
    assert "planted-value" not in err


HOSTILE_FILES = {
    "a python tag": f"{JOB}gold: !!python/object/apply:os.system ['touch SENTINEL']\n",
    "a path tag": f"{JOB}gold: !!python/object/apply:pathlib.Path ['SENTINEL']\n",
    "a string tag": f"{JOB}gold: !!str x\n",
    "aliases that multiply": JOB + "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "a target": f"{JOB}sampling: {{_target_: venv.create, env_dir: SENTINEL}}\n",
    "hydra's own": "# @package _global_\nhydra: {callbacks: {x: {_target_: venv.create, env_dir: SENTINEL}}}\n"
    f"job:\n  {JOB.replace(chr(10), chr(10) + '  ')}",
    "hydra's own without code": "# @package _global_\nhydra: {verbose: true}\n"
    f"job:\n  {JOB.replace(chr(10), chr(10) + '  ')}",
    "a package of hydra's": f"# @package hydra.callbacks.x\n{JOB}",
    "a launcher in the defaults": f"defaults:\n  - override /hydra/launcher: basic\n  - _self_\n{JOB}",
    "a secret in the defaults": f"defaults:\n  - ${{oc.env:PLANTED_SECRET}}\n  - _self_\n{JOB}",
    "a secret in the prompt": JOB.replace("Say", "${oc.env:PLANTED_SECRET}"),
    "a default out of the folder": f"defaults:\n  - ../../outside\n  - _self_\n{JOB}",
    "no mapping": "- a\n- b\n",
    "no YAML": "messages: [",
    "not text": "\udcff",
    "nested without end": f"{JOB}gold: {'[' * 5000}{']' * 5000}\n",
    "too much": JOB + "#" * 2**20,
    "an unknown key": f"{JOB}outptu: {{kind: text}}\n",
}


@pytest.mark.parametrize("what", HOSTILE_FILES)
def test_a_file_of_the_user_that_is_more_than_data_is_refused_and_nothing_runs(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sentinel, folder = tmp_path / "sentinel", tmp_path / "conf"
    (tmp_path / "outside.yaml").write_text("gold: label\n", "utf-8")
    (folder / "job").mkdir(parents=True)
    text = HOSTILE_FILES[what].replace("SENTINEL", str(sentinel))
    (folder / "job" / "mine.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    monkeypatch.setenv("PLANTED_SECRET", "planted-value")

    code, out, err = typed(capsys, "--config-dir", str(folder), "+job=mine")

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert not sentinel.exists()
    assert "planted-value" not in err


def test_a_file_that_is_refused_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_with(tmp_path, HOSTILE_FILES["a target"])

    _, _, err = typed(capsys, "--config-dir", str(folder), "+job=mine")

    file = folder / "job" / "mine.yaml"
    assert err == f"error: {file}: the key _target_ is refused: a config is data, nothing in it is executed\n"


def test_of_a_misspelt_key_and_the_one_that_is_missing_for_it_the_misspelt_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_with(tmp_path, JOB.replace("output:", "outptu:"))

    _, _, err = typed(capsys, "--config-dir", str(folder), "+job=mine")

    value = "{'kind': 'text', 'column': 'answer'}"
    assert err == f"error: there is no key job.outptu (={value}), the nearest is job.output (and 1 more)\n"


def test_a_link_out_of_the_users_folder_is_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_with(tmp_path / "conf", JOB, at="job/other.yaml")
    (tmp_path / "outside.yaml").write_text(JOB, "utf-8")
    (folder / "job" / "mine.yaml").symlink_to(tmp_path / "outside.yaml")

    code, _, err = typed(capsys, "--config-dir", str(folder), "+job=mine")

    assert code == 2
    assert f"mine.yaml leads out of --config-dir {folder}" in err


def test_a_job_of_the_user_needs_one_file_and_is_named_after_it(mine: Path) -> None:
    (config,) = compose(["--config-dir", str(mine), "+job=mine"])

    assert (config.job.name, config.sink.uri, config.tracking.experiment) == ("mine", "out/mine", "out/mine")
    assert config.job.messages[0].content == "Say something about {{ text }}"


def test_a_folder_of_the_user_may_have_any_name(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "a 'b' \"c\", {d}=[e] ü", JOB)

    (config,) = compose(["--config-dir", str(folder), "+job=mine"])

    assert config.job.output.column == "answer"


def test_a_file_of_the_user_with_the_name_of_one_that_ships_is_refused_since_one_would_be_ignored(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_with(mine, "kind: vllm\n", at="engine/vllm.yaml")

    code, _, err = typed(capsys, "--config-dir", str(mine), "+job=mine")

    assert code == 2
    assert "engine/vllm.yaml has the name of an option that ships with the house: rename it" in err


def test_a_folder_of_jobs_given_instead_of_its_parent_is_told_so(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = typed(capsys, "--config-dir", str(mine / "job"), "+job=mine")

    assert code == 2
    assert "job/ is one itself: give its parent" in err


def test_a_key_may_be_set_whether_or_not_the_chosen_option_spells_it_out(mine: Path) -> None:
    (config,) = compose(
        ["--config-dir", str(mine), "job=mine", "job.gold=label", "source.limit=5", "+engine.simulated.start_s=1.0",
         "pricing.devices.MI300X={usd_per_hour: 1.5, source: me, date: '2026-01-01'}"]
    )  # fmt: skip

    assert (config.job.gold, config.source.limit, config.engine.simulated.start_s) == ("label", 5, 1.0)
    assert str(config.pricing.devices["MI300X"].usd_per_hour) == "1.5"
    assert "H100" in config.pricing.devices


def test_text_with_braces_commas_and_dollars_reaches_the_config_to_the_letter(mine: Path) -> None:
    text = "Price of {{ a }}, in \\${currency}: 'x', \"y\""
    quoted = "'" + text.replace("'", "\\'") + "'"

    (config,) = compose(["--config-dir", str(mine), "+job=mine", f"job.messages.0.content={quoted}"])

    assert config.job.messages[0].content == "Price of {{ a }}, in ${currency}: 'x', \"y\""


def test_an_environment_variable_that_is_no_secret_is_read(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")

    (config,) = compose(["--config-dir", str(mine), "+job=mine"])

    assert config.tracking.uri == "http://tracker:5000"


def test_a_multirun_gives_each_job_a_folder_and_a_name_of_its_own(mine: Path) -> None:
    configs = compose(
        [
            "--config-dir",
            str(mine),
            "+job=mine",
            "--multirun",
            "batching=static,dynamic",
            "model.path='a/b',c",
            "seed=7",
        ]
    )

    assert [(c.batching.mode, c.model.path, c.seed) for c in configs] == [
        ("static", "a/b", 7), ("static", "c", 7), ("dynamic", "a/b", 7), ("dynamic", "c", 7),
    ]  # fmt: skip
    assert [c.sink.uri for c in configs] == [
        f"out/mine/batching={mode},model.path={path}" for mode in ("static", "dynamic") for path in ("a_b", "c")
    ]
    assert configs[0].tracking.run_name == "batching=static,model.path=a/b"
    assert {c.tracking.experiment for c in configs} == {"out/mine"}
    assert len({c.tracking.multirun for c in configs}) == 1
    assert configs[0].tracking.multirun


def test_of_two_values_for_one_key_or_group_the_last_one_holds(mine: Path) -> None:
    folder_with(mine, JOB, at="job/other.yaml")

    (config,) = compose(["--config-dir", str(mine), "+job=mine", "seed=1", "job=other", "++seed=2"])

    assert (config.job.name, config.seed) == ("other", 2)


def test_a_multirun_over_the_sink_itself_writes_where_it_says(mine: Path) -> None:
    configs = compose(["--config-dir", str(mine), "+job=mine", "-m", "sink.uri=a,b"])

    assert [c.sink.uri for c in configs] == ["a", "b"]


def test_a_multirun_over_a_range_or_all_options_runs_each(mine: Path) -> None:
    configs = compose(["--config-dir", str(mine), "+job=mine", "-m", "batching=glob(*)", "unit.rows=range(1,3)"])

    assert {(c.batching.mode, c.unit.rows) for c in configs} == {
        (mode, rows) for mode in ("continuous", "dynamic", "static") for rows in (1, 2)
    }


def test_a_multirun_with_one_wrong_job_starts_none(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started: list[int] = []

    def body(config: RunConfig) -> Exit:
        started.append(config.unit.rows)
        return Exit.DONE

    code, _, err = typed(capsys, "--config-dir", str(mine), "+job=mine", "-m", "unit.rows=5,0", body=body)

    assert (code, started) == (2, [])
    assert err == "error: unit.rows=0 is not at least 1\n"


def test_a_range_without_end_is_refused_before_it_is_expanded(mine: Path) -> None:
    with pytest.raises(UserError, match=f"more than {MOST_JOBS} jobs"):
        compose(["--config-dir", str(mine), "+job=mine", "-m", "seed=range(0,1000000000000)"])


def raising(error: BaseException) -> Callable[[RunConfig], Exit]:
    def body(config: RunConfig) -> Exit:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no bucket\n  of that name"), 2, "error: no bucket of that name\n"),
        (RunFailed("the store stayed away"), 1, "failed: the store stayed away\n"),
        (KeyboardInterrupt(), 4, "stopped: what was finished is committed, and the same command goes on\n"),
        (UserError("shard \x1b[31mred\x00"), 2, "error: shard \\x1b[31mred\\x00\n"),
        (RunFailed("https://me:geheim@host/ said no"), 1, "failed: https://***@host/ said no\n"),
    ],
)
def test_how_a_body_ends_is_one_harmless_line_and_the_contracts_exit_code(
    error: BaseException, code: int, line: str, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(capsys, "--config-dir", str(mine), "+job=mine", body=raising(error)) == (code, "", line)


def test_a_bug_keeps_its_traceback(mine: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        command(raising(ZeroDivisionError()), doc="", argv=["--config-dir", str(mine), "+job=mine"])


@pytest.mark.parametrize(
    ("second", "code", "ran"), [(Exit.DONE, 0, 3), (Exit.TOO_MANY_ERRORS, 3, 3), (Exit.STOPPED, 4, 2)]
)
def test_a_multirun_goes_on_after_a_failure_and_ends_when_stopped(
    second: Exit, code: int, ran: int, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds: list[int] = []

    def body(config: RunConfig) -> Exit:
        seeds.append(config.seed)
        return second if config.seed == 2 else Exit.DONE

    found, _, err = typed(capsys, "--config-dir", str(mine), "+job=mine", "-m", "seed=1,2,3", body=body)

    assert (found, len(seeds)) == (code, ran)
    assert err.startswith("job 1 of 3: seed=1, into out/mine/seed=1\n")


def test_help_fits_on_a_screen_and_names_every_group_option_key_and_exit_code(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = typed(capsys, "--help", "--config-dir", str(mine))

    assert (code, err) == (0, "")
    assert len(out.splitlines()) <= 60
    assert max(len(line) for line in out.splitlines()) <= 120
    for group in GROUPS:
        for option in (CONF / group).glob("*.yaml"):
            assert option.stem in out
    assert " mine" in out
    for key in KEYS:
        assert f"  {key}" in out
    for exit_code, meaning in EXITS.items():
        assert f"  {int(exit_code)} {meaning}\n" in out + "\n"


# The contract's stable keys, as shared/design.md has them.
STABLE = {
    *("source.uri", "source.limit", "sink.uri", "sink.retain_hours", "tracking.uri", "unit.rows", "unit.bytes"),
    *("on_change", "on_deleted", "retry_errors", "publish", "budget.usd", "budget.finish_by", "max_error_rate", "seed"),
}


def test_every_key_that_help_names_exists_and_every_stable_key_is_named() -> None:
    there = set(leaves())

    assert set(KEYS) <= there
    assert STABLE & there <= set(KEYS)
    assert STABLE - there <= {"publish"}  # the gate before publication brings it


def test_cfg_prints_a_config_that_can_be_read_back_and_shows_no_secret(
    mine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-value")
    words = ["--config-dir", str(mine), "+job=mine", "tracking.uri='http://me:geheim@host/x?token=abc'"]
    words += ["job.messages.0.content='hello planted-value'"]

    code, out, _ = typed(capsys, *words, "--cfg")

    assert code == 0
    assert "uri: http://***@host/x?token=***" in out
    assert "content: hello ***" in out
    assert "geheim" not in out
    assert to_yaml(compose(words)[0]) == out


def in_a_process(*words: str, body: str = "return Exit.DONE") -> "subprocess.CompletedProcess[str]":
    script = f"""
import sys
from pipelines.cli import command
from pipelines.config import Exit
def body(config):
    {body}
command(body, doc="Runs a job.", argv=sys.argv[1:])
"""
    words = (sys.executable, "-c", script, *words)
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("words", "body", "code", "line"),
    [
        (["+job=mine"], "return Exit.STOPPED", 4, ""),
        (["+job=mine"], "return Exit.TOO_MANY_ERRORS", 3, ""),
        (["+job=mine", "unit.rows=x"], "return Exit.DONE", 2, "error: unit.rows=x is not a whole number\n"),
        (
            ["+job=mine", "hydra.verbose=true"],
            "return Exit.DONE",
            2,
            "error: hydra.verbose=true: Hydra's own ",
        ),
    ],
)
def test_a_process_ends_with_the_contracts_exit_code(
    words: list[str], body: str, code: int, line: str, mine: Path
) -> None:
    done = in_a_process("--config-dir", str(mine), *words, body=body)

    assert done.returncode == code
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == (1 if line else 0)


def test_a_process_with_a_bug_ends_with_1_and_a_traceback(mine: Path) -> None:
    done = in_a_process("--config-dir", str(mine), "+job=mine", body="return 1 / 0")

    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_composing_leaves_no_folder_and_no_log_behind(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "empty"
    here.mkdir()
    monkeypatch.chdir(here)

    compose(["--config-dir", str(mine), "+job=mine", "-m", "seed=1,2"])

    assert list(here.iterdir()) == []
