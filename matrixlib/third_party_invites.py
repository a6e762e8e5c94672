"""Is an invite the redemption of a third-party invite? (room versions, the rules under "If `content` has a
`third_party_invite` property"; client-server API, `m.room.third_party_invite`.)

The identity server signed `{mxid, token}`; the room's `m.room.third_party_invite` event lists whose
signatures count.
"""

from collections.abc import Mapping
from typing import Any

from matrixlib.events import Event, StateKey
from matrixlib.hashes import decode_base64
from matrixlib.signing import SignatureError, VerifyKey, signing_key_ids, verify_signed_json
from matrixlib.verdicts import ALLOWED, Verdict, refuse

MAX_PUBLIC_KEYS = 50
MAX_SIGNATURES = 50
"""Bounds on work; an event of 64 KiB could otherwise ask for thousands of signature checks."""


def third_party_token(content: Mapping[str, Any]) -> str | None:
    """`third_party_invite.signed.token` of an invite's content, if it is a string."""
    invite = content.get("third_party_invite")
    signed = invite.get("signed") if isinstance(invite, dict) else None
    token = signed.get("token") if isinstance(signed, dict) else None
    return token if isinstance(token, str) else None


def check_third_party_invite(event: Event, state: Mapping[StateKey, Event]) -> Verdict:
    """Judge an invite whose content has a `third_party_invite` property, by the rules for those alone."""
    version = event.room_version
    target = state.get(("m.room.member", event.state_key or ""))
    # 1. "If *target user* is banned, reject."
    if target is not None and target.membership == "ban":
        return refuse(version, "third_party.banned", "the target is banned")
    # 2. "If `content.third_party_invite` does not have a `signed` property, reject."
    invite = event.content.get("third_party_invite")
    signed = invite.get("signed") if isinstance(invite, dict) else None
    if not isinstance(signed, dict):
        return refuse(version, "third_party.signed", "no signed object")
    # 3. "If `signed` does not have `mxid` and `token` properties, reject."
    token = signed.get("token")
    if not isinstance(token, str) or not isinstance(signed.get("mxid"), str):
        return refuse(version, "third_party.mxid_token", "no mxid or token")
    # 4. "If `mxid` does not match `state_key`, reject."
    if signed["mxid"] != event.state_key:
        return refuse(version, "third_party.mxid", "the signed mxid is not the target")
    # 5. "If there is no `m.room.third_party_invite` event in the current room state with `state_key` matching
    # ..."
    issued = state.get(("m.room.third_party_invite", token))
    if issued is None:
        return refuse(version, "third_party.event", "no third-party invite with this token")
    # 6. "If `sender` does not match `sender` of the `m.room.third_party_invite`, reject."
    if issued.sender != event.sender:
        return refuse(version, "third_party.sender", "the sender did not issue the third-party invite")
    # 7. "If any signature in `signed` matches any public key in the `m.room.third_party_invite` event,
    # allow."
    if _any_signature_matches(signed, public_keys(issued)):
        return ALLOWED
    return refuse(version, "third_party.otherwise", "no signature of a listed key")


def public_keys(issued: Event) -> list[bytes]:
    """The Ed25519 keys that an `m.room.third_party_invite` event lists; malformed ones are left out."""
    content = issued.content
    listed = content.get("public_keys")
    candidates = [content.get("public_key")]
    if isinstance(listed, list):
        candidates += [item.get("public_key") for item in listed[:MAX_PUBLIC_KEYS] if isinstance(item, dict)]
    keys = []
    for candidate in candidates:
        try:
            key = decode_base64(candidate)
        except ValueError:
            continue
        if len(key) == 32:
            keys.append(key)
    return keys


def _any_signature_matches(signed: Mapping[str, Any], keys: list[bytes]) -> bool:
    signatures = signed.get("signatures")
    if not isinstance(signatures, dict):
        return False
    pairs = [(name, key_id) for name in signatures for key_id in signing_key_ids(signed, name)]
    for name, key_id in pairs[:MAX_SIGNATURES]:
        for key in keys:
            try:
                verify_signed_json(signed, name, VerifyKey(key_id, key))
            except SignatureError:
                continue
            return True
    return False
