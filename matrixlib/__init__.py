"""The Matrix protocol as pure functions and values: no I/O, no clock, no database.

Map, from the ground up:

* ``canonical_json`` and ``identifiers``: bytes and names;
* ``room_versions``: what differs between room versions 1 to 12, as data;
* ``redaction``, ``hashes``, ``signing``, ``events``, ``event_builder``: one event;
* ``power_levels``, ``third_party_invites``, ``event_auth``: may this event happen?
* ``state_resolution``: what is true where branches meet;
* ``policy_servers``: does the room's policy server recommend it?
* ``visibility``, ``server_acl``, ``push_rules``, ``client_event``: who sees it, and how;
* ``request_auth``, ``server_discovery``, ``server_keys``: talking to other servers, decided over given
  answers.
"""
