"""The settings of the three streams, and how they are made: what is missing is made, nothing is ever deleted
or narrowed.

Metadata of a stream: `arbor_partitions` (fixed), `arbor_epoch` (random, made with the stream),
`arbor_first_sequence`. A stream whose partitions, subjects or storage differ is an error that says so. A
retention limit that the configuration raises is raised; one that it lowers is only reported, for lowering it
deletes entries.
"""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from servicekit.log.errors import LogError, LogUnavailable, StreamMismatch
from servicekit.log.settings import LogSettings
from servicekit.log.subjects import INPUT, LIVE, OUTPUT, STREAM_SUBJECTS

LIVE_MAX_AGE_S = 60.0
LIVE_MAX_BYTES = 64 * 1024 * 1024
MAX_MESSAGE_BYTES = 1024 * 1024 + 64 * 1024
"""A message's payload is at most 1 MiB; its headers and subject count too."""

NO_STREAM = 10059
STREAM_NAME_IN_USE = 10058

Request = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""Sends a request to the JetStream API (subject without `$JS.API.`) and returns the decoded answer."""


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream as it is now. `first_sequence` = `last_sequence` + 1 when it is empty."""

    name: str
    epoch: str
    partitions: int
    created_first_sequence: int
    first_sequence: int
    last_sequence: int
    messages: int
    bytes: int
    config: dict[str, Any]


def stream_config(name: str, settings: LogSettings, first_sequence: int = 1) -> dict[str, Any]:
    """Return the JetStream configuration that a stream is made with, its epoch included."""
    age_s = {INPUT: settings.input_max_age_s, OUTPUT: settings.output_max_age_s, LIVE: LIVE_MAX_AGE_S}[name]
    live = name == LIVE
    return {
        "name": name,
        "subjects": list(STREAM_SUBJECTS[name]),
        "storage": "memory" if live else "file",
        "retention": "limits",
        # LIVE may lose its oldest; the others refuse the newest, so that a writer notices.
        "discard": "old" if live else "new",
        "max_age": int(age_s * 1e9),
        "max_bytes": LIVE_MAX_BYTES if live else settings.max_bytes,
        "max_msg_size": MAX_MESSAGE_BYTES,
        "max_consumers": -1,
        "max_msgs": -1,
        "num_replicas": settings.replicas,
        "allow_direct": False,
        "allow_atomic": name == OUTPUT,
        "first_seq": first_sequence,
        "metadata": {
            "arbor_partitions": str(settings.partitions),
            "arbor_epoch": secrets.token_hex(4),
            "arbor_first_sequence": str(first_sequence),
        },
    }


def read_stream_info(answer: dict[str, Any]) -> StreamInfo:
    """Return a stream from the answer to STREAM.INFO or STREAM.CREATE.

    Raises:
        StreamMismatch: it is not one of ours (no metadata of ours).
    """
    config, state = answer["config"], answer["state"]
    metadata = config.get("metadata") or {}
    if "arbor_epoch" not in metadata or "arbor_partitions" not in metadata:
        raise StreamMismatch(
            f"the stream {config['name']} was not made by Arbor: use a NATS account of its own"
        )
    return StreamInfo(
        name=config["name"],
        epoch=metadata["arbor_epoch"],
        partitions=int(metadata["arbor_partitions"]),
        created_first_sequence=int(metadata.get("arbor_first_sequence", 1)),
        first_sequence=max(state["first_seq"], 1) if state["messages"] else state["last_seq"] + 1,
        last_sequence=state["last_seq"],
        messages=state["messages"],
        bytes=state["bytes"],
        config=config,
    )


def check_stream(info: StreamInfo, settings: LogSettings) -> None:
    """Check that a stream can be used with these settings.

    Raises:
        StreamMismatch: partitions, subjects or storage differ.
    """
    if info.partitions != settings.partitions:
        raise StreamMismatch(
            f"the stream {info.name} has {info.partitions} partitions, the configuration says"
            f" {settings.partitions}: set log.partitions to {info.partitions} (fixed once the stream is made)"
        )
    wanted = stream_config(info.name, settings)
    for key in ("subjects", "storage", "retention", "discard"):
        found = info.config.get(key)
        if found != wanted[key]:
            raise StreamMismatch(
                f"the stream {info.name} has {key} {found!r}, {wanted[key]!r} is needed; it was left alone"
            )


def grown_config(info: StreamInfo, settings: LogSettings) -> tuple[dict[str, Any] | None, list[str]]:
    """Compare limits: return the configuration with raised ones (None: nothing to raise) and what stays too
    high.
    """
    wanted = stream_config(info.name, settings)
    changed = dict(info.config)
    lowered = []
    for key in ("max_age", "max_bytes", "max_msg_size", "num_replicas"):
        found, value = info.config.get(key, 0), wanted[key]
        unlimited = key != "num_replicas" and found <= 0
        if value > found and not unlimited:
            changed[key] = value
        elif value < found:
            lowered.append(f"{info.name}.{key}: {found}, configured {value}")
    if info.name == OUTPUT and not info.config.get("allow_atomic"):
        changed["allow_atomic"] = True
    return (changed if changed != info.config else None), lowered


async def load_stream(request: Request, name: str) -> StreamInfo | None:
    """Return a stream as it is now, or None where there is none.

    Raises:
        LogUnavailable: nobody answered.
    """
    answer = await request(f"STREAM.INFO.{name}", {})
    if "error" in answer:
        if answer["error"].get("err_code") == NO_STREAM:
            return None
        raise LogUnavailable(f"stream {name}: {answer['error'].get('description')}")
    return read_stream_info(answer)


async def ensure_stream(
    request: Request, name: str, settings: LogSettings, first_sequence: int
) -> tuple[StreamInfo, list[str]]:
    """Make a stream where it is missing, raise its limits where the configuration did; return it and
    warnings.

    Raises:
        StreamMismatch: it is there and cannot be used.
        LogError: the server refused to make it.
    """
    info = await load_stream(request, name)
    if info is None:
        answer = await request(f"STREAM.CREATE.{name}", stream_config(name, settings, first_sequence))
        error = answer.get("error")
        if error is None:
            return read_stream_info(answer), []
        if error.get("err_code") != STREAM_NAME_IN_USE:
            raise LogError(f"the stream {name} cannot be made: {error.get('description')}")
        info = await load_stream(request, name)  # another process was faster
        if info is None:
            raise LogUnavailable(f"stream {name} is being made")
    check_stream(info, settings)
    changed, lowered = grown_config(info, settings)
    if changed is not None:
        answer = await request(f"STREAM.UPDATE.{name}", changed)
        if "error" in answer:
            raise LogError(f"the stream {name} cannot be changed: {answer['error'].get('description')}")
        info = read_stream_info(answer)
    return info, lowered
