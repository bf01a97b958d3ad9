"""What it would gain at most to let long rows in first where a run ends: with the length of each answer known before.

    python -m benchmarks.long_first

One engine that works in steps, in virtual time; rows enter by the pipeline's own admission. Told: seconds until the
last answer, with rows as they come, and with those of the last so many windows, or all, sorted by how long they are.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

from actors.engine import Prompt
from benchmarks.admission import CASES, SEEN, Case, answered, prompts_of
from benchmarks.measure import circumstances
from benchmarks.step_engine import output_of

CHAT, LONG_ANSWERS, CPU_CHAT = CASES[1], CASES[3], CASES[6]
MEASURED = (CHAT, replace(CHAT, rows=24_000), LONG_ANSWERS, CPU_CHAT)
WINDOWS = (2, 4, 8)  # times max_num_seqs


def sorted_at_the_end(case: Case, rows: int) -> Sequence[Prompt]:
    """The prompts of a case, the last so many of them the longest first."""
    prompts = prompts_of(case)
    end = sorted(prompts[-rows:], key=lambda prompt: -output_of(prompt, case.output))
    return [*prompts[:-rows], *end]


def main() -> None:
    results = []
    print(f"| device | rows | as they come | {' | '.join(f'last {each} windows' for each in WINDOWS)} | all |")
    print(f"|{'---|' * (4 + len(WINDOWS))}")
    for case in MEASURED:
        sizes = [each * case.sizes.max_num_seqs for each in WINDOWS]
        came = answered(case, SEEN["all"]).seconds
        first = [answered(case, SEEN["all"], sorted_at_the_end(case, rows)).seconds for rows in (*sizes, case.rows)]
        name = f"{case.rows:,} of {case.name} ({case.prompt}, {case.output})"
        print(
            f"| {case.device.name} | {name} | {' | '.join(f'{each:,.1f} s' for each in (came, *first))} |", flush=True
        )
        results.append({"device": case.device.name, "rows": name, "came": came, "long_first": first})
    print(
        json.dumps({"benchmark": "long_first", "results": results, **circumstances("python -m benchmarks.long_first")})
    )


if __name__ == "__main__":
    main()
