"""What ships in conf/ composes, means what it says, and cannot grow a key by accident."""

import itertools
from dataclasses import FrozenInstanceError
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from pipelines.accounts.cost import price_of
from pipelines.compose import compose
from pipelines.config import Exit, ModelConfig, RunConfig, UserError
from pipelines.config_folder import CONF, GROUPS, options
from pipelines.config_keys import leaves
from pipelines.redact import redacted

# Every key that a user may set. A change here is a change of the contract: CHANGELOG.md tells users of it.
SURFACE = {
    "job.name", "job.messages", "job.fields",
    "job.output.kind", "job.output.labels", "job.output.json_schema", "job.output.column",
    "job.sampling.max_tokens", "job.sampling.temperature", "job.sampling.top_p", "job.sampling.top_k",
    "job.sampling.stop", "job.gold",
    "job.chat_template_args", "model.chat_template_args", "job.ladder.ask_again", "job.ladder.too_long",
    "model.name", "model.path", "model.revision", "model.max_model_len", "model.dtype", "model.quantization",
    "model.max_num_seqs", "model.max_num_batched_tokens", "model.gpu_memory_utilization", "model.tensor_parallel",
    "model.pipeline_parallel", "model.adapter",
    "precision.name", "precision.dtype", "precision.quantization", "precision.checkpoint", "precision.kv_cache_dtype",
    "precision.devices", "precision.min_compute_capability", "precision.needs",
    "batching.mode", "batching.max_num_seqs", "batching.max_num_batched_tokens", "batching.lookahead",
    "batching.batch_rows", "batching.wait_ms",
    "engine.kind", "engine.replicas", "engine.device", "engine.threads", "engine.cores", "engine.kv_cache_gib",
    "engine.start_timeout_s", "engine.chunked_prefill", "engine.speculation.method", "engine.speculation.tokens",
    "engine.speculation.lookup_min", "engine.speculation.lookup_max",
    "engine.units_in_flight", "engine.stop_when_decided", "engine.max_restarts", "engine.overdue_times",
    "engine.max_restarts_per_hour",
    "engine.simulated.latency_s", "engine.simulated.latency_spread", "engine.simulated.start_s",
    "engine.simulated.output_tokens", "engine.simulated.bad_token_id", "engine.simulated.poison_token_id",
    "engine.simulated.hang_token_id", "engine.simulated.die_every_rows", "engine.simulated.kill_token_id",
    "engine.simulated.kill_every_rows", "engine.simulated.kill_signal", "engine.simulated.stop_token_id",
    "engine.simulated.starts_file", "engine.simulated.crash_starts",
    "source.uri", "source.include", "source.exclude",
    "source.follow_links", "source.identity", "source.columns", "source.limit", "source.max_row_bytes",
    "sink.uri", "sink.retain_hours",
    "unit.rows", "unit.bytes", "unit.shrink",
    "tracking.uri", "tracking.experiment", "tracking.run_name", "tracking.multirun", "tracking.every_s",
    "pricing.name", "pricing.devices",
    "alerts.channels", "alerts.path", "alerts.rules", "alerts.check_s",
    "cluster.address", "cluster.num_cpus", "cluster.object_store_gib", "cluster.read_tasks", "cluster.overlay",
    "budget.usd", "budget.finish_by", "budget.scope",
    "metrics.port", "metrics.host",
    "prompt.field_order", "prompt.min_agreement",
    "publish", "gate.max_error_rate", "gate.max_drift", "gate.verify", "gate.approval", "gate.limits",
    "dedup", "ordering", "on_change", "on_deleted", "retry_errors", "max_error_rate", "seed", "grace_s",
}  # fmt: skip


def composed(*words: str) -> RunConfig:
    (config,) = compose(["+job=classify", *words])
    return config


def test_the_keys_that_a_user_may_set_are_those_written_down() -> None:
    assert set(leaves()) == SURFACE


def test_each_group_of_the_contract_that_is_built_has_a_folder_and_no_other_folder_is_there() -> None:
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == set(GROUPS)


def test_what_the_issue_asks_for_ships() -> None:
    assert {"classify", "extract", "generate", "summarize"} <= set(options("job"))
    assert {"smollm2", "llama31_8b", "qwen3_8b", "qwen3_06b", "gpt_oss_20b", "mistral_7b"} <= set(options("model"))
    assert set(options("precision")) == {"auto", "fp32", "fp16", "bf16", "fp8", "int8", "int4_gptq", "int4_awq"}
    assert set(options("batching")) == {"continuous", "dynamic", "static"}
    assert set(options("engine")) == {"simulated", "vllm"}


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_of_every_group_composes_under_its_own_name(group: str) -> None:
    for option in options(group):
        config = composed(f"{group}={option}")
        if group in ("job", "precision", "pricing"):
            assert getattr(config, group).name == option
        if group == "batching":
            assert config.batching.mode == option
        if group == "engine":
            assert config.engine.kind == option


@pytest.mark.parametrize("model", options("model"))
def test_every_model_composes_with_every_precision(model: str) -> None:
    configs = compose(["+job=classify", f"model={model}", "-m", "precision=glob(*)"])

    assert {config.precision.name for config in configs} == set(options("precision"))
    assert {config.model.name for config in configs} == {composed(f"model={model}").model.name}


def test_the_command_alone_runs_the_demo_corpus_with_the_model_that_ships() -> None:
    config = composed()

    assert (config.source.uri, config.sink.uri) == ("out/corpus", "out/classify")
    assert config.model.path == "embedded://smollm2-135m-instruct"
    assert (config.engine.kind, config.engine.pool, config.batching.mode) == ("vllm", (1, 1), "continuous")
    assert (config.tracking.uri, config.tracking.experiment) == ("sqlite:///out/mlflow.db", "out/classify")
    assert (config.on_change, config.max_error_rate, config.sink.retain_hours) == ("refuse", 0.01, 0.0)


def test_two_jobs_over_one_corpus_share_no_output_and_no_experiment() -> None:
    configs = [composed(f"job={job}") for job in options("job")]

    for one, other in itertools.combinations(configs, 2):
        assert one.sink.uri != other.sink.uri
        assert one.tracking.experiment != other.tracking.experiment


def test_conf_spells_out_the_defaults_of_its_types_and_does_not_differ_from_them() -> None:
    shipped = yaml.safe_load((CONF / "config.yaml").read_text("utf-8"))
    config = composed()

    for key in ("publish", "on_change", "on_deleted", "retry_errors", "max_error_rate", "seed", "grace_s"):
        assert shipped[key] == RunConfig.__dataclass_fields__[key].default == getattr(config, key)
    for key in ("rows", "bytes"):
        assert shipped["unit"][key] == type(config.unit).__dataclass_fields__[key].default
    for key in ("max_error_rate", "max_drift", "verify", "approval"):
        assert shipped["gate"][key] == type(config.gate).__dataclass_fields__[key].default
    for key in ("usd", "finish_by", "scope"):
        assert shipped["budget"][key] == type(config.budget).__dataclass_fields__[key].default


@pytest.mark.parametrize("pricing", options("pricing"))
def test_every_price_says_where_it_is_from_and_of_which_day(pricing: str) -> None:
    for name, price in composed(f"pricing={pricing}").pricing.devices.items():
        assert price.usd_per_hour > 0, name
        assert len(price.source) > 10, name
        assert price.date.startswith("2026-"), name


@pytest.mark.parametrize(
    ("device", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H200", "H200"), ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L40S", "L40S"), ("NVIDIA L4", "L4"), ("Tesla T4", "T4"), ("NVIDIA B200", "B200"), (None, "cpu"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("pricing", options("pricing"))
def test_a_device_by_the_name_that_nvml_gives_it_finds_its_own_price(
    device: str | None, key: str, pricing: str
) -> None:
    prices = composed(f"pricing={pricing}").pricing

    assert price_of(device, prices) == prices.devices[key]


@pytest.mark.parametrize("ends", ["6h", "1h30m", "2d", "90s", "2026-11-25T06:00Z", "2026-11-25T06:00:00+01:00"])
def test_a_deadline_is_a_duration_or_a_time_with_its_zone(ends: str) -> None:
    assert composed(f"budget.finish_by={ends}").budget.finish_by == ends


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("budget.finish_by=tomorrow", r"budget\.finish_by=tomorrow is neither a time such as .* nor a duration"),
        ("budget.finish_by=2026-11-25T06:00", r"budget\.finish_by=2026-11-25T06:00 says no time zone: add Z"),
        ("budget.finish_by=''", r"budget\.finish_by= is neither"),
        ("budget.usd=0", r"budget\.usd=0 is not greater than 0"),
        ("budget.scope=day", r"budget\.scope=day is not one of run, output"),
        ("pricing.devices.H100.date=lately", r"date=lately is no day"),
        ("+pricing.devices.X={source: me, date: '2026-01-01'}", "neither usd_per_hour nor own: give one of them"),
        ("+pricing.devices.H100.own={watts: 1, usd_per_kwh: 1, purchase_usd: 1, hours: 1}", "usd_per_hour and own"),
    ],
)
def test_a_budget_or_a_price_that_says_nothing_is_refused(word: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        composed(word)


def test_a_price_stays_a_decimal_from_the_command_line_to_the_config() -> None:
    assert composed("pricing.devices.H100.usd_per_hour=2.69").pricing.devices["H100"].usd_per_hour == Decimal("2.69")


def test_a_config_cannot_be_changed_once_it_is_checked() -> None:
    with pytest.raises(FrozenInstanceError):
        composed().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("source", "sink"),
    [("data", "data"), ("data", "./data/"), ("data", "data/out"), ("s3://b/in", "s3://b/in/out"), ("/", "/out"),
     ("out/x/data", "out/x"), ("out/x/data/part", "out/x"), ("s3://b/out/data/", "s3://b/out/")],
)  # fmt: skip
def test_an_output_that_the_next_run_would_read_as_input_is_refused(source: str, sink: str) -> None:
    with pytest.raises(UserError, match=r"source\.uri="):
        composed(f"source.uri='{source}'", f"sink.uri='{sink}'")


@pytest.mark.parametrize(
    ("source", "sink"),
    [("data", "data2"), ("data2", "data"), ("s3://b/in", "s3://b/input"), ("out/first/data", "out/second"),
     ("s3://b/in", "in"), ("out/first/data", "out/first/data2")],
)  # fmt: skip
def test_an_output_beside_its_input_is_accepted(source: str, sink: str) -> None:
    assert composed(f"source.uri='{source}'", f"sink.uri='{sink}'").sink.uri == sink


def test_credentials_in_a_uri_are_refused() -> None:
    with pytest.raises(UserError, match="holds credentials"):
        composed("source.uri='s3://AKIAABCDEFGHIJKLMNOP:secret@bucket/x'")


def test_numbers_without_end_are_refused() -> None:
    with pytest.raises(UserError, match=r"grace_s=inf is not a finite number"):
        composed("grace_s=inf")


def test_exit_codes_are_those_of_the_contract() -> None:
    assert {code.name: code.value for code in Exit} == {
        "DONE": 0, "FAILED": 1, "USAGE": 2, "TOO_MANY_ERRORS": 3, "STOPPED": 4,
    }  # fmt: skip


def test_every_option_begins_with_what_it_is_or_needs() -> None:
    for file in sorted(CONF.rglob("*.yaml")):
        text = file.read_text("utf-8")
        assert text.startswith("#") or "\nneeds:" in text, file


def test_nothing_that_ships_is_more_than_data() -> None:
    for file in sorted(CONF.rglob("*.yaml")):
        text = file.read_text("utf-8")
        assert "_target_" not in text, file
        assert not any(isinstance(token, yaml.TagToken | yaml.AliasToken) for token in yaml.scan(text)), file


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:geheim@host/x", "https://***@host/x"),
        ("postgresql://mlflow:p%40ss@db:5432/x", "postgresql://***@db:5432/x"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("https://h/x?X-Amz-Signature=abc&a=1", "https://h/x?X-Amz-Signature=***&a=1"),
        ("https://h/x?token=abc", "https://h/x?token=***"),
        ("AKIAABCDEFGHIJKLMNOP is a key", "*** is a key"),
        ("hf_abcdefghijklmnopqrst", "***"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
        ("planted-value and 'planted-value-longer'", "*** and '***'"),
        ('as json: "two\\nlines"', 'as json: "***"'),
        ("tokens: 12345678, true, /run/token", "tokens: 12345678, true, /run/token"),
    ],
)
def test_secrets_are_hidden_and_the_rest_is_left_as_it_is(text: str, shown: str) -> None:
    env = {
        "HF_TOKEN": "planted-value",
        "AWS_SECRET_ACCESS_KEY": "planted-value-longer",
        "DB_PASSWORD": "two\nlines",
        "MAX_TOKENS": "12345678",
        "TOKENIZERS_PARALLELISM": "parallel",
        "X_TOKEN": "true",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/run/token",
        "PATH": "/usr/bin",
    }

    assert redacted(text, env) == shown


def test_a_config_folder_is_found_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert composed().job.name == "classify"


def test_dead_letters_to_ask_again_are_all_none_or_types_that_there_are() -> None:
    assert composed("retry_errors=true").retry_errors is True
    assert composed("retry_errors=[engine,timeout]").retry_errors == ("engine", "timeout")
    assert composed("retry_errors=poison").retry_errors == ("poison",)
    for wrong in ("[engin]", "engin", "[]", "3"):
        with pytest.raises(UserError, match=r"retry_errors is .*give true, false, or some of contract"):
            composed(f"retry_errors={wrong}")


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "bos_token", "steps left", "no-name"])
def test_an_argument_of_a_chat_template_cannot_take_the_place_of_what_it_is_given_anyway(name: str) -> None:
    with pytest.raises(ValueError, match="is no argument that may be set"):
        ModelConfig(name="mine", path="mine", chat_template_args={name: "x"})
