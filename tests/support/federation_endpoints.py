"""Every endpoint of the server-server API of the specification, v1.19: what is served, and what is not and why.

Lines are `METHOD path`, paths as the specification writes them; a test compares them with the routes that the
service declares. An endpoint that comes moves its line.
"""

SERVED = """
GET /.well-known/matrix/server
PUT /_matrix/federation/v1/3pid/onbind
GET /_matrix/federation/v1/backfill/{roomId}
GET /_matrix/federation/v1/event/{eventId}
GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}
PUT /_matrix/federation/v1/exchange_third_party_invite/{roomId}
POST /_matrix/federation/v1/get_missing_events/{roomId}
GET /_matrix/federation/v1/hierarchy/{roomId}
PUT /_matrix/federation/v1/invite/{roomId}/{eventId}
GET /_matrix/federation/v1/make_join/{roomId}/{userId}
GET /_matrix/federation/v1/make_knock/{roomId}/{userId}
GET /_matrix/federation/v1/make_leave/{roomId}/{userId}
GET /_matrix/federation/v1/openid/userinfo
GET /_matrix/federation/v1/publicRooms
POST /_matrix/federation/v1/publicRooms
GET /_matrix/federation/v1/query/directory
GET /_matrix/federation/v1/query/profile
PUT /_matrix/federation/v1/send/{txnId}
PUT /_matrix/federation/v1/send_knock/{roomId}/{eventId}
GET /_matrix/federation/v1/state/{roomId}
GET /_matrix/federation/v1/state_ids/{roomId}
GET /_matrix/federation/v1/timestamp_to_event/{roomId}
GET /_matrix/federation/v1/version
PUT /_matrix/federation/v2/invite/{roomId}/{eventId}
PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}
PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}
POST /_matrix/key/v2/query
GET /_matrix/key/v2/query/{serverName}
GET /_matrix/key/v2/server
"""

NOT_SERVED = {
    "comes with media": """
GET /_matrix/federation/v1/media/download/{mediaId}
GET /_matrix/federation/v1/media/thumbnail/{mediaId}
""",
    "comes with end-to-end encryption": """
GET /_matrix/federation/v1/user/devices/{userId}
POST /_matrix/federation/v1/user/keys/claim
POST /_matrix/federation/v1/user/keys/query
""",
    "the form of all queries; the kinds that the specification defines are served": """
GET /_matrix/federation/v1/query/{queryType}
""",
    "only a policy server serves it, which this is not": """
POST /_matrix/policy/v1/sign
""",
}

# Served besides, the older forms that the specification has dropped or keeps for old servers.
BESIDES = """
POST /_matrix/federation/v1/3pid/onbind
GET /_matrix/key/v2/server/{keyId}
GET /_matrix/key/v2/query/{serverName}/{keyId}
GET /_matrix/federation/unstable/org.matrix.msc3030/timestamp_to_event/{roomId}
"""

# Those that the specification has protected by the room's ACL.
ACL_PROTECTED = """
GET /_matrix/federation/v1/make_join/{roomId}/{userId}
GET /_matrix/federation/v1/make_leave/{roomId}/{userId}
GET /_matrix/federation/v1/make_knock/{roomId}/{userId}
PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}
PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}
PUT /_matrix/federation/v1/send_knock/{roomId}/{eventId}
PUT /_matrix/federation/v1/invite/{roomId}/{eventId}
PUT /_matrix/federation/v2/invite/{roomId}/{eventId}
GET /_matrix/federation/v1/state/{roomId}
GET /_matrix/federation/v1/state_ids/{roomId}
GET /_matrix/federation/v1/backfill/{roomId}
GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}
POST /_matrix/federation/v1/get_missing_events/{roomId}
"""
