"""What comes from NATS is taken apart wherever the socket cuts it."""

import pytest

from servicekit.log.client import LogClient

STREAM = (
    b"MSG a.b 1 5\r\nhel\r\n\r\n"  # the payload holds a line end
    b"PING\r\n"
    b"HMSG a.c 1 $JS.ACK.x 12 14\r\nNATS/1.0\r\n\r\nhi\r\n"
    b"MSG other 7 2\r\nno\r\n"
    b"+OK\r\n"
    b"MSG a.d 1 _INBOX.r 0\r\n\r\n"
)
TAKEN = [
    (b"a.b", b"", b"hel\r\n", None),
    (b"a.c", b"$JS.ACK.x", b"hi", b"NATS/1.0\r\n\r\n"),
    (b"a.d", b"_INBOX.r", b"", None),
]
OTHERS = [b"PING\r\n", b"MSG other 7 2\r\nno\r\n", b"+OK\r\n"]


class Reader:
    """A client that is not connected, and what its handler and its task get."""

    def __init__(self) -> None:
        self.client = LogClient()
        self.taken: list[tuple[bytes, bytes, bytes, bytes | None]] = []
        self.others: list[bytes] = []
        self.rest = b""
        self.client.raw_handlers[1] = lambda *message: self.taken.append(message)

    def feed(self, data: bytes) -> None:
        self.rest = self.client._take(self.rest + data, self.others.append)


@pytest.mark.parametrize("size", [1, 2, 7, 30, len(STREAM)])
def test_commands_are_put_together_from_any_pieces(size: int) -> None:
    reader = Reader()
    for start in range(0, len(STREAM), size):
        reader.feed(STREAM[start : start + size])
    assert reader.taken == TAKEN
    assert reader.others == OTHERS
    assert reader.rest == b""


def test_a_handler_that_raises_does_not_end_the_reading() -> None:
    reader = Reader()
    troubles: list[BaseException] = []
    reader.client.on_trouble = troubles.append

    def fail(*_message: object) -> None:
        raise ValueError("bad")

    reader.client.raw_handlers[7] = fail
    reader.feed(STREAM)
    assert [str(error) for error in troubles] == ["bad"]
    assert reader.taken == TAKEN
