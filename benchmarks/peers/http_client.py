"""A plain asyncio client against `vllm serve`, with the pipeline's engine settings: a Request as JSON in, Parquet out.

The last line on standard output is JSON.
"""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from benchmarks.peers.request import Request

START_S = 600.0


@contextmanager
def served(request: Request) -> Iterator[str]:
    """The address of a server, once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*request.flags(), "--enable-prompt-tokens-details", "--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words]
    server = subprocess.Popen(command, stdout=sys.stderr)
    try:
        until = time.monotonic() + START_S
        while not _healthy(port):
            if server.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not come up: exit code {server.poll()}")
            time.sleep(0.1)  # there is nothing to wait on: it tells by answering
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


async def asked(address: str, request: Request, rows: list[dict[str, str]]) -> list[Any]:
    """The completion of each row; as many at once as fill the engine and keep half as many waiting."""
    slots = asyncio.Semaphore(request.at_once * 3 // 2)
    http = DefaultAsyncHttpxClient(trust_env=False, timeout=None)
    async with AsyncOpenAI(base_url=address, api_key="none", http_client=http, max_retries=0) as client:

        async def ask(row: dict[str, str]) -> Any:
            async with slots:
                return await client.chat.completions.create(
                    model=request.model,
                    messages=[
                        {"role": "system", "content": row["system"]},
                        {"role": "user", "content": row["user"]},
                    ],
                    temperature=0,
                    max_completion_tokens=request.max_tokens,
                    extra_body=request.structured,
                )

        return await asyncio.gather(*map(ask, rows))


def main(request: Request) -> dict[str, Any]:
    table = ds.dataset(request.corpus, format="parquet").to_table()
    with served(request) as address:
        began = time.monotonic()
        completions = asyncio.run(asked(address, request, table.to_pylist()))
        took_s = time.monotonic() - began
    texts = pa.array([one.choices[0].message.content for one in completions], pa.string())
    Path(request.answers).mkdir()
    pq.write_table(table.append_column("answer", texts), Path(request.answers) / "part-0.parquet")
    used = [one.usage for one in completions]
    cached = sum(one.prompt_tokens_details.cached_tokens or 0 for one in used if one.prompt_tokens_details)
    prompts = sum(one.prompt_tokens for one in used)
    return {
        "rows": len(completions),
        "rows_per_s": len(completions) / took_s,
        "prompt_tokens": prompts,
        "prefilled": prompts - cached,
        "decoded": sum(one.completion_tokens for one in used),
    }


if __name__ == "__main__":
    print(json.dumps(main(Request.from_command_line())))
