"""The end of an engine's own process, told to the thread that waits for its output.

vLLM 0.32's synchronous client waits on a queue that nobody fills once that process was killed by a signal: a monitor of
its own closes the sockets and wakes nobody. Imported by vllm_engine.py alone.
"""

import threading
from multiprocessing import connection
from typing import Any


def tell_of_its_end(client: Any) -> None:
    """From now on the client's next output is EngineDeadError once a process of the engine has ended."""
    manager = client.resources.engine_manager
    if manager is None:  # it was started by somebody else
        return
    sentinels, outputs = [process.sentinel for process in manager.processes], client.outputs_queue

    def wait() -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        connection.wait(sentinels)
        outputs.put(EngineDeadError())  # behind what it had answered; after a shutdown nobody looks

    threading.Thread(target=wait, name="vllm-process", daemon=True).start()
