"""The log of a run, `metrics.jsonl`: one JSON object a line, read back even where the file is damaged."""

import io
import json
import logging
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from statistics import fmean, median
from typing import Any

from dcgan._files import atomic_write

Record = dict[str, Any]

logger = logging.getLogger(__name__)


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a record to a log.

    Raises:
        OSError: If the disk is full; of the record, a part may have been written then, which `read` leaves out.
    """
    try:
        with path.open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
    except OSError as error:
        error.filename = str(path)  # an error on closing has none
        raise


def read(path: Path) -> list[Record]:
    """Return the whole records of a log, in order; none if it does not exist."""
    return [record for _, record in _lines(path) if record is not None]


def rewind(path: Path, step: int) -> None:
    """Remove the records after a step, as bytes, and set damaged lines aside, beside the log, with a warning.

    A last line that a killed process left without its end is no damage.
    """
    lines = _lines(path)
    kept = [line for line, record in lines if record is not None and record["step"] <= step]
    damaged = [line for line, record in lines if record is None and line.endswith(b"\n")]
    if damaged:
        aside = path.with_name(f"{path.name}.damaged")
        with aside.open("ab") as file:
            file.writelines(damaged)
        logger.warning("%s has damaged lines: %d, set aside in %s", path, len(damaged), aside.name)
    with atomic_write(path) as file:
        file.writelines(kept)


def summarize(records: Sequence[Record], figures: Mapping[int, float]) -> dict[str, str]:
    """Describe in words how training has gone so far; each entry is a line with its label.

    Args:
        records: The log.
        figures: The figure of quality at each step that has one; lower is better.
    """
    if not records:
        return {}
    lines = {"health": _describe_health(records)}
    balance = [(record["d_real"], record["d_fake"]) for record in records[-5:] if {"d_real", "d_fake"} <= record.keys()]
    if balance:
        real, fake = (fmean(values) for values in zip(*balance, strict=True))
        lines["balance"] = f"D(x) {real:.2f}, D(G(z)) {fake:.2f} over the last {len(balance)} lines of the log"
    if figures:
        last, best = max(figures), min(figures, key=figures.__getitem__)
        lines["quality"] = f"distance {figures[last]:.2f} from the images at step {last}"
        if best != last:
            lines["quality"] += f", and {figures[best]:.2f} at step {best}, the best"
    if speeds := [record["images_per_second"] for record in records if "images_per_second" in record]:
        lines["speed"] = f"{median(speeds):,.0f} images/s"
    return lines


def _lines(path: Path) -> list[tuple[bytes, Record | None]]:
    """Return each line with its record, or None if it is damaged.

    So is one whose step does not lie between those before and after it, if these are in order.
    """
    lines = io.BytesIO(path.read_bytes()).readlines() if path.exists() else []  # only "\n" ends a line
    records = [_parse(line) for line in lines]
    steps = [record["step"] for record in records if record is not None]
    in_order = (
        before < step < after or before >= after
        for before, step, after in zip([-1, *steps], steps, [*steps[1:], inf], strict=False)
    )
    judged = [record if record is not None and next(in_order) else None for record in records]
    return list(zip(lines, judged, strict=True))


def _parse(line: bytes) -> Record | None:
    """Return the record of a line, or None if it is not whole."""
    if not line.endswith((b"}\n", b"}\r\n")):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and isinstance(record.get("step"), int)
    whole = whole and all(
        isinstance(value, str if name == "collapse" else int | float) for name, value in record.items()
    )
    return record if whole else None


def _describe_health(records: Sequence[Record]) -> str:
    collapsed = [record["step"] for record in records if "collapse" in record]
    if not collapsed:
        return f"no sign of collapse in {records[-1]['step']:,} steps"
    if "collapse" in records[-1]:
        return f"collapsed: {records[-1]['collapse']}"
    return f"collapsed for a time, last at step {collapsed[-1]}, and recovered"
