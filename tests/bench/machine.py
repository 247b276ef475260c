"""What figures depend on besides the code."""

import os
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def described(directory: Path) -> dict[str, Any]:
    """The machine, as JSON values; asked before anything is measured, so the load is that of others."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "load": round(os.getloadavg()[0], 2),
        "disk_wait_ms": round(_disk_wait_ms(directory), 3),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _disk_wait_ms(directory: Path) -> float:
    """The median time in which 4 KiB more of a file are on the disk."""
    waits = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(200):
            begun = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            waits.append(time.perf_counter() - begun)
    return statistics.median(waits) * 1000
