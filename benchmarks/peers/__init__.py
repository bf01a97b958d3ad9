"""The pipeline beside its peers; see `__main__.py`.

__main__.py          the table: workloads by sides, order rotated
request.py           what every side is asked: rows, model, engine settings, sampling
sides.py             each side, started as its users start it, and what is told of it
ray_data_llm.py      a process: Ray Data's LLM processor
daft_prompt.py       a process: Daft's prompt with its vLLM provider
http_client.py       a process: an asyncio client against `vllm serve`
plot.py              what came of it, drawn
"""
