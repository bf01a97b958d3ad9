"""vLLM behind the engine protocol: its `LLMEngine`, stepped by a thread; prompts go in by a queue, final answers
come out by futures. Alone with the other vllm_*.py in importing vllm, and only once its environment is set.

On CPU the engine lives in this process (measured in issue 3: faster, and in half the time to load), on GPU in one of
its own, whose death leaves this one alive. The code is the same; vLLM's client hides which.
"""

import asyncio
import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from actors.engine import Answer, BadPrompt, EngineConfig, EngineLoad, EngineLost, Prompt
from actors.vllm_process import tell_of_its_end
from actors.vllm_request import decided_answer, sampling_params, to_answer, token_input
from actors.vllm_settings import engine_args, in_process, lora_request, set_environment

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 20.0  # for a step to end when the engine is closed


@dataclass(slots=True, eq=False)
class _Ask:
    """A prompt on its way through the engine's thread."""

    number: str
    prompt: Prompt
    future: "asyncio.Future[Answer]"
    loop: asyncio.AbstractEventLoop


@dataclass(slots=True)
class _Counts:
    """The engine's own figures, as of its last step."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    preemptions: int = 0
    tokens: int = 0
    drafted: int = 0
    rejected: int = 0


@dataclass(slots=True)
class _Talk:
    """The last lines that vLLM logged in this process: what it was doing, and its last words."""

    lines: "deque[str]" = field(default_factory=lambda: deque(maxlen=30))


class VllmEngine:
    """One vLLM engine; see `Engine`. The constructor returns once it answers.

    Raises EngineLost where it does not start, with what it was doing and the engine's last words.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._inbox: queue.SimpleQueue[_Ask | str | None] = queue.SimpleQueue()
        self._asks: dict[str, _Ask] = {}  # of the engine's thread
        self._engine: Any = None
        self._adapter: Any = None  # vLLM's LoRARequest; None: the model alone
        self._counts = _Counts()
        self._talk = _Talk()
        self._lock = threading.Lock()  # over _lost and the inbox: nothing is put after the last look
        self._lost: str | None = None
        self._next = 0
        self._vocabulary = 0
        self._kv_tokens: int | None = None
        self._phase = "setting its environment"
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)
        self._thread.start()
        if not self._ready.wait(config.start_timeout_s):
            limit = f"{config.start_timeout_s:g} s (engine.start_timeout_s)"
            self._lose(f"engine {config.model_name} did not start within {limit}: it was {self._phase}{self._said()}")
            self._inbox.put(None)
        if self._lost:
            raise EngineLost(self._lost)

    async def answer(self, prompt: Prompt) -> Answer:
        """Answer one prompt; see `Engine.answer`."""
        self._check(prompt)
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._lost:
                raise EngineLost(self._lost)
            self._next += 1
            ask = _Ask(number=str(self._next), prompt=prompt, future=loop.create_future(), loop=loop)
            self._inbox.put(ask)
        try:
            return await ask.future
        except asyncio.CancelledError:
            self._inbox.put(ask.number)  # take it out of the engine
            raise

    def load(self) -> EngineLoad:
        """The engine's figures as of its last step."""
        counts = self._counts
        return EngineLoad(
            running=counts.running,
            waiting=counts.waiting,
            kv_usage=counts.kv_usage,
            kv_tokens=self._kv_tokens,
            preemptions=counts.preemptions,
            tokens=counts.tokens,
            drafted=counts.drafted if self._config.speculation else None,
            rejected=counts.rejected if self._config.speculation else None,
        )

    def close(self) -> None:
        """Free device and processes; calls in flight end with EngineLost.

        Raises:
            EngineLost: the engine hangs in this process and cannot be stopped without it.
        """
        self._lose(f"engine {self._config.model_name} was closed")
        self._inbox.put(None)
        self._thread.join(STOP_TIMEOUT_S)
        if not self._thread.is_alive():
            return
        if in_process(self._config):
            raise EngineLost(f"engine {self._config.model_name} hangs in a step and cannot be stopped in its process")
        if self._engine is not None:
            self._engine.engine_core.shutdown()

    # -- the caller's side -------------------------------------------------------------------------------------------

    def _check(self, prompt: Prompt) -> None:
        """One token id out of range kills vLLM with all that is in it (research/reliability.md 0.9), so look first."""
        ids = prompt.token_ids
        if not ids:
            raise BadPrompt("the prompt has no tokens")
        if min(ids) < 0 or max(ids) >= self._vocabulary:
            bad = next(each for each in ids if not 0 <= each < self._vocabulary)
            raise BadPrompt(
                f"the prompt holds token id {bad}; {self._config.model_name} has 0 to {self._vocabulary - 1}"
            )
        if len(ids) >= self._config.max_model_len:
            limit = self._config.max_model_len
            raise BadPrompt(f"the prompt has {len(ids)} tokens; with the answer at most {limit} fit (max_model_len)")

    # -- the engine's thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._open()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the constructor raises it in words
            what = f"{type(error).__name__}: {error}"
            self._lose(f"engine {self._config.model_name} did not start: {what} (it was {self._phase}){self._said()}")
            self._ready.set()
            return
        self._ready.set()
        try:
            while self._take_in():
                self._hand_out(self._engine.step())
        except BaseException as error:  # the engine is gone, and every row in it learns why
            logger.exception("engine %s is lost", self._config.model_name)
            self._lose(f"engine {self._config.model_name} died: {type(error).__name__}: {error}{self._said()}")
        finally:
            self._shut()

    def _open(self) -> None:
        set_environment(self._config)
        if self._config.cores:
            os.sched_setaffinity(0, self._config.cores)  # of this thread, and of those that it will start
        self._phase = "importing vllm"
        import torch
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        self._listen()
        if self._config.device == "cpu":
            # The environment may come too late for an OpenMP that is loaded already; its thread count belongs to
            # the calling thread, which is why the engine is opened and stepped by the same one.
            torch.set_num_threads(self._config.threads)
        self._phase = "reading the model's configuration"
        args = EngineArgs(**engine_args(self._config))
        self._phase = "loading weights and allocating KV memory"
        # stat loggers are vLLM's seam for figures, the same in process and out of it
        self._engine = LLMEngine.from_engine_args(args, stat_loggers=[_stat_logger(self._counts)])
        if not in_process(self._config):
            tell_of_its_end(self._engine.engine_core)
        self._vocabulary = self._engine.model_config.get_vocab_size()
        self._kv_tokens = self._engine.vllm_config.cache_config.kv_cache_size_tokens
        self._adapter = lora_request(self._config)

    def _take_in(self) -> bool:
        """Move what has come to the engine; waits where it has nothing to do. False: closed."""
        wait = not self._asks
        while True:
            try:
                item = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            wait = False
            if item is None:
                return False
            if isinstance(item, str):
                if self._asks.pop(item, None):
                    self._engine.abort_request([item])
                wait = not self._asks
            else:
                self._add(item)
                wait = not self._asks

    def _add(self, ask: _Ask) -> None:
        if ask.future.cancelled():
            return
        prompt = ask.prompt
        self._asks[ask.number] = ask
        try:
            params = sampling_params(prompt.sampling, prompt.constraint, prompt.alternatives, self._stops_early(prompt))
            self._engine.add_request(
                ask.number, token_input(list(prompt.token_ids)), params, lora_request=self._adapter
            )
        except (ValueError, TypeError) as error:  # vLLM's way to refuse a request; it does not touch the others
            del self._asks[ask.number]
            self._engine.abort_request([ask.number])
            self._deliver([(ask, BadPrompt(f"{self._config.model_name} refused the prompt: {error}"))])

    def _hand_out(self, outputs: list[Any]) -> None:
        ended: list[tuple[_Ask, Answer | Exception]] = []
        decided: list[str] = []
        for output in outputs:
            ask = self._asks.get(output.request_id)
            if ask is None:
                continue
            answer = None
            if output.finished:
                answer = to_answer(output, ask.prompt, self._stops_early(ask.prompt))
            elif self._stops_early(ask.prompt):
                answer = decided_answer(output, ask.prompt)
                if answer:
                    decided.append(output.request_id)
            if answer:
                del self._asks[output.request_id]
                ended.append((ask, answer))
        if decided:
            self._engine.abort_request(decided)
        self._deliver(ended)

    def _stops_early(self, prompt: Prompt) -> bool:
        return self._config.stop_when_decided and bool(prompt.constraint.choices)

    def _deliver(self, ended: "list[tuple[_Ask, Answer | Exception]]") -> None:
        loops = {ask.loop for ask, _ in ended}
        for loop in loops:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, [each for each in ended if each[0].loop is loop])

    def _lose(self, why: str) -> None:
        """From now on nothing is answered. The first reason stays."""
        with self._lock:
            self._lost = self._lost or why
        asks = list(self._asks.values())
        while True:
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                break
            if isinstance(item, _Ask):
                asks.append(item)
        self._deliver([(ask, EngineLost(self._lost)) for ask in asks])

    def _shut(self) -> None:
        engine, self._engine = self._engine, None
        self._counts = _Counts()
        if engine is None:
            return
        engine.engine_core.shutdown()
        del engine
        if in_process(self._config):
            from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()

    def _listen(self) -> None:
        handler = _Ear(self._talk.lines.append)
        logging.getLogger("vllm").addHandler(handler)

    def _said(self) -> str:
        """The end of what vLLM logged, as a clause; the worker's log has all of it."""
        last = list(self._talk.lines)[-3:]
        return f"; its last words: {' | '.join(last)}" if last else ""


class _Ear(logging.Handler):
    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record.getMessage().strip().replace("\n", " ")[:500])


def _settle(ended: "list[tuple[_Ask, Answer | Exception]]") -> None:
    for ask, end in ended:
        if ask.future.done():
            continue
        if isinstance(end, Exception):
            ask.future.set_exception(end)
        else:
            ask.future.set_result(end)


def _stat_logger(counts: _Counts) -> Callable[..., Any]:
    """A factory of vLLM stat loggers that write the figures of each step into `counts`."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Figures(StatLoggerBase):  # type: ignore[misc]
        def __init__(self, vllm_config: Any = None, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any = None, iteration_stats: Any = None, *_: Any, **__: Any) -> None:
            if scheduler_stats is not None:
                counts.running = scheduler_stats.num_running_reqs
                counts.waiting = scheduler_stats.num_waiting_reqs
                counts.kv_usage = scheduler_stats.kv_cache_usage
                if (speculated := scheduler_stats.spec_decoding_stats) is not None:
                    counts.drafted += speculated.num_draft_tokens
                    counts.rejected += speculated.num_draft_tokens - speculated.num_accepted_tokens
            if iteration_stats is not None:
                counts.preemptions += iteration_stats.num_preempted_reqs
                counts.tokens += iteration_stats.num_prompt_tokens + iteration_stats.num_generation_tokens

        def log_engine_initialized(self) -> None:
            pass

    return Figures
