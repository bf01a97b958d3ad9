"""The map, in the order in which a row travels: each file and what it is about. No code stands here.

run.py             runs a job: the command
plan.py            says what a run would do and cost: the command
submit.py          starts a run on a cluster, follows it, stops it: the command
submission.py        a run that is to be started elsewhere, and what every elsewhere can do
ray_jobs.py          on a Ray that is up, by its job API
kube.py              as a RayJob of KubeRay
kube_api.py            the API server: RayJobs, config maps, logs
rayjob.py            an overlay's RayJob with the run in it
kustomize.py         as much of kustomize as k8s/ uses
planner.py         a surveyed run to its plan: what plan and submit share
planned.py         a plan as a table and as JSON
planned_cost.py      its hours and dollars
preflight.py       what would keep a run from starting, or end it
engine_probe.py    one engine answers some rows, for a plan's figures
pace.py            how fast the hardware at hand is, by a probe, earlier runs or the limits
outlook.py         from sample and ledger to hours and dollars, here and elsewhere
expected.py          rows and tokens that engines will be given
machine.py         the model's sizes and the device, and a run beside what they allow
tune.py            finds batch sizes for a model, hardware and job: the command
tuning.py            which sizes to try next
tuned.py             those found, kept for later runs
agree.py           finds rules for the order of fields in each row, and tries them: the command
judge.py           lets a second model judge a sample of an output's answers: the command
report.py          makes the report of a run again: the command
watch.py           shows a run that is at work elsewhere: the command
verify.py          proves an output against its input and its ledger: the command
alerts.py          lists, acknowledges, escalates alerts, tests a channel: the command
diff.py            says what would change if a candidate were published: the command
publish.py         shows readers a candidate, whatever the gate found: the command
rollback.py        shows readers an earlier version again: the command
approve.py         answers for a candidate: the command
newest.py          the config of the newest run of an output
sample.py          some answered rows, answered again
work.py            the work of a run: a flow over what is to do, committed as it comes
cli.py             Hydra in, exit code out; alone in printing errors
compose.py         conf/, a user's folder and the command line to checked configs; alone in knowing Hydra, with
config_folder.py     the folders that configs come from, and their files read with suspicion
config_keys.py       the keys there are, the nearest to a wrong one, errors in one line
alert_config.py    alerts as a config says them: rules, paths, channels
gate_config.py     what the gate holds a candidate against, as a config says it
config.py          the contract in types: settings, Exit, UserError, RunFailed
redact.py          secrets out of any text that leaves the process
preparation.py     all that is decided before anything starts
refused.py           why a run does not start over an output that is there
field_rows.py      which order a job's fields have, and the rows that it is found from
row_rules.py         rules for it that were tried, kept beside the output
engine_choice.py   model, precision and hardware to the engine that opens, or a refusal
ending.py          the end of a run, in order or cut short, told to all who keep it
cluster.py         Ray for a command, and what a dataflow on it is told
specs.py             what the stages before an engine are told; alone with all else that needs no Ray
source/            what there is
    shards.py          list the shards: format, size, identity
    formats.py         a shard's format by its name; its bytes, unpacked a little at a time
    lines.py           lines of text and records of CSV, each bounded
    json_values.py     a JSON value's type, and a value as a column's type
    parquet.py         a Parquet shard, opened to be read a little at a time
    pages.py             sizes of its pages, from their headers: the bound that no footer gives
    thrift.py            as much of Thrift as such headers take
    types.py           what Delta can hold of a column's type; what two types have in common
    schema.py          one schema for the whole output
    units.py           Unit; where to cut, and the name of a unit
job/               what is asked
    template.py        messages over a row's columns, rendered in a sandbox
    filters.py         what a template may do to a value
    contract.py        the output contract: what is constrained, read back, typed
    json_types.py      from a JSON schema to columns, and a document to their values
    field_order.py     the order of a job's fields in which sorted prompts share most
    row_order.py       rules that give each row an order of its own
    chat.py            messages to token ids; a row's text stays text
    chat_template.py   the model's chat template, bounded
    model.py           where a model lies, what it is, and that nothing in it is code
    adapter.py         a LoRA over it, likewise
    model_files.py     what in their files is code, what they say, what tells them apart
    model_fetch.py     their files, from the Hub or from s3://
    ladder.py          what is tried for a row before it becomes a dead letter
    fingerprint.py     fingerprint and row key
changes.py         corpus against ledger: rows to do, each with its reason
ahead.py           rows and units to do, counted
rows_ahead.py      rows to do, for a run's progress: counted at little cost, or estimated
draw.py            some of those rows, rendered and tokenized
corpus_order.py    all prompts of a run sorted by how they begin, out of core
dataflow.py        the way of the data on one screen; Ray Data joins the stages
flow_stages.py       what its tasks do with a shard, and with an answered unit
flow_errors.py       why a flow ended, in a line that says what to do
flow_sizes.py        how many units are under way, and how small they become at the end
flow_control.py      a hand on its pool of engines: how many, and the end of a flow that cannot end
stages/            what happens to one unit, one plain function each
    read.py            a shard to parcels, cut as it is read
    parcel.py          a unit as it travels, one row of Ray Data's
    decode.py          a shard's rows in pieces, whatever its format
    decode_parquet.py    Parquet, row group by row group
    decode_jsonl.py      JSONL, line by line where it must be
    pieces.py          consecutive rows of a shard, and where in it they are
    columns.py         columns as read, brought to the run's schema
    carry.py           what the output says already of a unit's rows
    prepare.py         rows to prompts: render, tokenize, check the length, key
    ordered.py         sorted prompts, asked before their rows are read, and what they were answered
                       (infer: prompts to answers, in actors/host.py)
    parse.py           answers to data rows and dead letters
    gold.py            how many answers carry the expected label
    measures.py        what the data rows say, counted
    refusals.py          answers that decline to answer
    write.py           dead letters first, data last, always new names
sink/              what is done; alone in importing deltalake
    receipt.py         Receipt, in a footer and in the ledger
    measures.py          what the rows of a unit say, in counts that add up
    ledger.py          all receipts of an output; to append to it is the commit
    committed.py       which receipts count
    decisions.py       which of them readers see, since when, by whom and why
    publications.py      the log of that
    tables.py          brings data and errors up to the ledger; takes over, cleans
    fenced.py          a Delta table with one writer at a time
    delta_errors.py    what delta-rs says of a store that fails, and waiting for one that is away
    aside.py           where files lie that no reader should see yet
    alive.py           a run at work leaves a sign of life; a second one is refused
    found.py           an output before anybody becomes its writer
    output.py          ledger and tables in the hands of one run
    costs.py           what each run was billed, by part and day
    audit.py           an output against its ledger: receipts, tables, files that nobody accounts for
    audit_files.py       what the files of each unit hold
accounts/          what it cost and how it went; imported by commands alone
    cost.py            dollars, dollars per million tokens; prices
    attribution.py     what the seconds of each device went into
    account.py         what a run costs while it runs; booked at its end, or by the next run
    allowance.py       budget and deadline: when to admit no more rows
    pool.py            how many engines a run should have, for its deadline and within its budget
    budget.py          signals and error rate: when to stop, with which exit code
    shape.py           how big a model is, from its config.json
    devices.py         what a device can do at most, with sources; this CPU by measuring
    limits.py          the time that some work takes at least, and what a run made of it
    starvation.py      for how long engines had room and no rows, and which stage they waited for
    overdue.py         rows that are in an engine for many times as long as rows take
    reuse.py           beginnings that prompts share: available, captured by order, delivered by engines
    bottleneck.py      what held a run back, what to change, what that gains at most
    forecast.py        hours and dollars, with an interval, from earlier runs or the limits
    probed.py          what a probe found: the rate of an engine, and what it was held for besides
    providers.py       what providers' APIs would charge
    quality.py         what answers are like, in sums over units, and how far one run's are from another's
    agreement.py         gold against answers: per class, calibration
    panel.py             some fixed rows of an output, looked at after each run
    texts.py             a sample of answers in free text: language, mood, overlap with the input
    judged.py            what a second model said of a sample of them
    quality_files.py     what a run found of them, kept beside the output for later runs
    distances.py         how far apart two groups of counts are, and whether chance explains it
    summary.py         what a run did, in numbers
    live.py            what a run at work learns of itself
    snapshot.py          all of it at one moment, in one value
    rates.py             how fast a count grows
    live_panel.py        for people: a panel, a line
    live_file.py         for those who watch it elsewhere: a file beside the output
    metrics.py           for Prometheus
    progress.py        where a run stands, on its own terminal
    closing.py         the end of a run on the terminal
    quiet.py           the libraries' messages, into a file
    alerts.py          alerts of a run at work: who is told of what, and what is kept of it
    alert_rules.py       when they are raised, escalated, told again, resolved: a state machine
    alert_figures.py     the figures that rules look at
    alert_files.py       where they lie, and who has acknowledged
    channels.py          the way to people, by apprise
    gate.py            whether readers may see a candidate
    moved.py           which answers it changes, from what to what
    tracking.py        MLflow: parameters, metrics, artifacts
    system_metrics.py    the driver's machine, as MLflow shows it
    delivery.py        the way to MLflow, which a run never waits for
    run_summary.py     what each run did, in a small file for whoever looks at many
    manifest.py        what ran, on what, with which outcome
    audit_costs.py     what runs were billed, against what they said and what receipts tell
    proof.py           what verify found, as a table and as JSON
    report.py          the report of a run, one HTML file
    report_page.py       sections of facts, tables and plots, rendered (report.html.j2)
    report_sections.py   the sections
    report_quality.py    that about answers
    report_money.py      those about money
    report_runs.py       runs side by side, and run after run
    report_data.py       manifest, receipts and bill of a run
    report_rows.py       columns of its files, and some dead letters
    report_plots.py      SVG that fits a light and a dark page
probe.py           whether a store can hold an output, by trying
storage.py         bytes at a URI, local or S3: read, write, delete
gathered.py          many small files, read side by side
listing.py           what lies below a URI
places.py            what a URI may be; errors that name it
patience.py        how long a store that is away is waited for, and who is told
s3.py              how S3 is reached; alone in knowing its settings
s3_pages.py          pages of a listing, parsed
s3_parts.py          a long listing in parts that are asked for at once
memory.py          what was freed, given back to the system
"""
