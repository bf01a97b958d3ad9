"""All kinds. Their order is that of the seeds: seed n plays kind n modulo their number."""

from tests.faults import kinds_change, kinds_crash, kinds_run, kinds_store, kinds_workers
from tests.faults.kind import BOTH, DISK, KINDS, S3, Kind

MODULES = (kinds_change, kinds_crash, kinds_run, kinds_store, kinds_workers)  # imported, and so in the list

__all__ = ["BOTH", "DISK", "KINDS", "MODULES", "S3", "Kind"]
