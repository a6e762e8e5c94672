"""Log lines: form, ids, and secrets that never appear."""

import io
import json
import logging as stdlib_logging
from collections.abc import Iterator

import pytest

from servicekit.logging import ConsoleFormatter, JsonFormatter, Logger, redact, redact_target, request_id


@pytest.fixture
def output() -> Iterator[tuple[Logger, io.StringIO]]:
    stream = io.StringIO()
    inner = stdlib_logging.Logger("test", "DEBUG")
    handler = stdlib_logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter("edge"))
    inner.addHandler(handler)
    yield Logger(inner), stream
    handler.close()


def test_a_line_has_event_fields_and_request_id(output: tuple[Logger, io.StringIO]) -> None:
    log, stream = output
    token = request_id.set("r-1")
    log.info("batch_applied", entries=12, room_id="!a:b", level="mine")
    request_id.reset(token)
    line = json.loads(stream.getvalue())
    assert line["event"] == "batch_applied"
    assert (line["entries"], line["room_id"], line["request_id"]) == (12, "!a:b", "r-1")
    assert (line["process"], line["logger"]) == ("edge", "test")
    assert line["level"] == "info", "a field does not hide what every line has"


def test_a_console_line_is_one_line() -> None:
    record = stdlib_logging.LogRecord("x", stdlib_logging.INFO, "", 0, "said\nforged line", None, None)
    record.fields = {"text": "two words", "n": 1, "empty": ""}
    line = ConsoleFormatter("edge").format(record)
    assert "\n" not in line
    assert line.endswith("edge x: said\\nforged line text='two words' n=1 empty=''")


def test_secrets_are_blotted_out_by_name_and_by_form(output: tuple[Logger, io.StringIO]) -> None:
    log, stream = output
    log.info(
        "login",
        password="s3cret-a",
        access_token="s3cret-b",
        path="/sync?access_token=s3cret-c&since=a1_x",
        header="Bearer s3cret-d",
        url="nats://user:s3cret-e@host:4222",
        body=b"s3cret-f",
        data='{"refresh_token": "s3cret-g"}',
        minted="arb_s3cretabcdefghijklmnop",
    )
    try:
        raise RuntimeError("POST /login {'password': 's3cret-h'}")
    except RuntimeError:
        log.exception("failed with Authorization: Bearer s3cret-i")
    assert "s3cret" not in stream.getvalue()
    assert "since=a1_x" in stream.getvalue()
    assert "RuntimeError" in stream.getvalue()


def test_redaction_leaves_other_text_alone() -> None:
    text = "user @a:b.org sent $event:1 to https://example.org/path?x=1"
    assert redact(text) == text
    assert redact_target("/a/b?since=1&access_token=x") == "/a/b?since=…&access_token=…"


def test_an_x_matrix_signature_is_blotted_out() -> None:
    text = 'X-Matrix origin="a.b",destination="c.d",key="ed25519:1",sig="c2lnbmF0dXJl"'
    assert "c2lnbmF0dXJl" not in redact(text)
    assert 'origin="a.b"' in redact(text)
