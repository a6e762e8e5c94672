"""Events as they go into transactions: encoded once, however many servers are told."""

from collections import OrderedDict

from federation.storage.outgoing import OutgoingEvent
from matrixlib.canonical_json import encode_canonical, parse_json

MAX_EVENTS = 1000


class EncodedPdus:
    """The last events as canonical JSON."""

    def __init__(self) -> None:
        self._known: OrderedDict[int, bytes] = OrderedDict()

    def pdu(self, event: OutgoingEvent) -> bytes:
        """Return an event as canonical JSON, which the signature of a request is over."""
        known = self._known.get(event.position)
        if known is None:
            known = encode_canonical(parse_json(event.pdu_json))
            self._known[event.position] = known
            if len(self._known) > MAX_EVENTS:
                self._known.popitem(last=False)
        return known
