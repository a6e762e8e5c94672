"""Hypothesis strategies for JSON values and hostile PDUs."""

from typing import Any

from hypothesis import strategies as st

MAX = 2**53 - 1

strict_scalars = st.none() | st.booleans() | st.integers(-MAX, MAX) | st.text()
lax_scalars = strict_scalars | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False)


def json_values(scalars: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Nested values over some scalars."""
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=15,
    )


strict_values = json_values(strict_scalars)
lax_values = json_values(lax_scalars)
strict_objects = st.dictionaries(st.text(max_size=8), strict_values, max_size=5)

hostile_scalars = (
    lax_scalars
    | st.floats()
    | st.sampled_from(
        ["\ud800", "\0", "@a:b", "!r:a.example", "$x:a", "$" + "A" * 43, "", "m.room.member", "x" * 300]
    )
    | st.sampled_from([2**63, -(2**63), 2**64, 10**400, True, -0.0])
)
hostile_values = json_values(hostile_scalars)

MEMBER_KEYS = ["membership", "join_authorised_via_users_server", "third_party_invite"]
LEVEL_KEYS = ["users", "events", "notifications", "ban", "kick", "invite", "users_default", "state_default"]
CREATE_KEYS = ["creator", "additional_creators", "room_version", "m.federate"]
OTHER_KEYS = [
    "join_rule",
    "history_visibility",
    "public_key",
    "public_keys",
    "allow",
    "deny",
    "body",
    "redacts",
]

hostile_contents = st.dictionaries(
    st.sampled_from([*MEMBER_KEYS, *LEVEL_KEYS, *CREATE_KEYS, *OTHER_KEYS]) | st.text(max_size=3),
    hostile_values | st.sampled_from(["join", "invite", "leave", "ban", "knock", "public", "restricted"]),
    max_size=6,
)
_TYPES = (
    "member",
    "power_levels",
    "create",
    "join_rules",
    "redaction",
    "aliases",
    "third_party_invite",
    "message",
)
event_types = st.sampled_from([f"m.room.{name}" for name in _TYPES])
