"""Policy servers: who recommends a room's events, and whether an event carries that recommendation.

Spec v1.19, server-server API, "Policy Servers"; client-server API, `m.room.policy`.

Order of use: ``policy_server_of`` reads the room's current state; if that server has a joined user in the room
(the caller knows), each event but those that are ``is_exempt`` must be ``is_signed``; where it is not, the caller
asks the policy server, and ``with_signature`` adds what that answers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from matrixlib.events import Event, StateKey, parse_event
from matrixlib.hashes import decode_base64, encode_base64
from matrixlib.identifiers import is_valid_server_name
from matrixlib.signing import SignatureError, VerifyKey, verify_event_signature, verify_key_from_base64

POLICY_KEY: Final[StateKey] = ("m.room.policy", "")
KEY_ID: Final = "ed25519:policy_server"
"""Of every policy server's key. Such a key is not published: it stands in the room's state."""


@dataclass(frozen=True, slots=True)
class PolicyServer:
    """The policy server that a room's state names. It counts only while a user of it is joined to the room."""

    name: str
    key: VerifyKey | None
    """``None``: what the state has there is no key, so that no signature can be right."""


def policy_server_of(event: Event | None) -> PolicyServer | None:
    """The policy server that the `m.room.policy` of a room's current state names; ``None``: none.

    "Valid means `content` contains at least: a string value for `via`; an object value for `public_keys`
    containing at least a string value for `ed25519`."
    """
    if event is None or event.state_key is None or event.key != POLICY_KEY:
        return None
    name, keys = event.content.get("via"), event.content.get("public_keys")
    text = keys.get("ed25519") if isinstance(keys, dict) else None
    # A name that is no server name has no users.
    if not isinstance(name, str) or not is_valid_server_name(name) or not isinstance(text, str):
        return None
    try:
        return PolicyServer(name, verify_key_from_base64(KEY_ID, text))
    except ValueError:
        return PolicyServer(name, None)


def is_exempt(event: Event) -> bool:
    """Whether an event needs no recommendation: only the state event that names the policy server."""
    return event.state_key == "" and event.type == "m.room.policy"


def is_signed(event: Event, server: PolicyServer) -> bool:
    """Whether the policy server has signed the event with the key that the room's state gives."""
    if server.key is None:
        return False
    try:
        verify_event_signature(event, server.name, server.key)
    except SignatureError:
        return False
    return True


def with_signature(event: Event, server: PolicyServer, answer: Any) -> Event:
    """The event with the signature out of a policy server's answer added, and nothing else of that.

    The event's other signatures stay, those of the policy server's own name included: it may be the event's
    origin, too.

    Raises ``SignatureError`` if the answer holds no right signature, and ``EventTooLargeError`` if the event has
    no room for it.
    """
    of_server = answer.get(server.name) if isinstance(answer, Mapping) else None
    try:
        signature = decode_base64(of_server.get(KEY_ID) if isinstance(of_server, Mapping) else None)
    except ValueError:
        raise SignatureError(f"{server.name} did not sign with {KEY_ID}") from None
    if len(signature) != 64:
        raise SignatureError("a signature is 64 bytes long")
    signatures = dict(event.pdu["signatures"])
    signatures[server.name] = {**signatures.get(server.name, {}), KEY_ID: encode_base64(signature)}
    signed = parse_event({**event.pdu, "signatures": signatures}, event.room_version, event_id=event.event_id)
    if not is_signed(signed, server):
        raise SignatureError(f"the signature of {server.name} is not that of the key in the room's state")
    return signed
