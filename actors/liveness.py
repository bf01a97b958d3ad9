"""The driver's look at the hosts: one that is stopped is ended, so that another process goes on with its units.

A host finds by itself that its engine hangs; that its own process is stopped, or its event loop blocked, nobody can
tell but those who wait for its reports.
"""

import logging

from ray.exceptions import GetTimeoutError, RayError

from actors import process
from actors.control import Switch
from actors.engine import EngineLost
from actors.presence import node_is_alive

logger = logging.getLogger(__name__)


def look(switch: Switch) -> None:
    """End hosts that are silent over their limit, and log what happened since the last look. Call it every second.

    Raises:
        EngineLost: a replica has given up, with its reason; the run cannot go on.
    """
    news = switch.news()
    for line in news.lines:
        logger.warning("%s", line)
    for silent in news.silent:
        logger.warning("replica %s is ended: %s", silent.birth.process, silent.death.words)
        switch.note_death(silent.birth.process, silent.death)
        if not node_is_alive(silent.birth.node):
            continue  # it is gone with its node, where no task could end it
        try:
            process.end(silent.birth)
        except (RayError, GetTimeoutError) as error:  # its node is gone, and it with it; Ray finds that by itself
            logger.warning("replica %s could not be ended: %s", silent.birth.process, str(error).splitlines()[0])
    if news.given_up:
        raise EngineLost(news.given_up)
