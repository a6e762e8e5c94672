"""Every endpoint of the client-server API of the specification, v1.19: what is served, and what is not yet.

`SERVED` and `NOT_YET` hold `METHOD path`, paths as the specification writes them. A feature that comes moves its
lines from one to the other; a test compares both with the routes that the services declare.
"""

SERVED = """
GET /.well-known/matrix/client
GET /.well-known/matrix/support
GET /_matrix/client/v1/admin/lock/{userId}
PUT /_matrix/client/v1/admin/lock/{userId}
GET /_matrix/client/v1/admin/suspend/{userId}
PUT /_matrix/client/v1/admin/suspend/{userId}
POST /_matrix/client/v1/login/get_token
GET /_matrix/client/v1/mutual_rooms
GET /_matrix/client/v1/register/m.login.registration_token/validity
GET /_matrix/client/v1/room_summary/{roomIdOrAlias}
GET /_matrix/client/v1/rooms/{roomId}/hierarchy
GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}
GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}
GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}/{eventType}
GET /_matrix/client/v1/rooms/{roomId}/threads
GET /_matrix/client/v1/rooms/{roomId}/timestamp_to_event
GET /_matrix/client/v3/account/3pid
POST /_matrix/client/v3/account/deactivate
POST /_matrix/client/v3/account/password
GET /_matrix/client/v3/account/whoami
GET /_matrix/client/v3/admin/whois/{userId}
GET /_matrix/client/v3/capabilities
POST /_matrix/client/v3/createRoom
POST /_matrix/client/v3/delete_devices
GET /_matrix/client/v3/devices
DELETE /_matrix/client/v3/devices/{deviceId}
GET /_matrix/client/v3/devices/{deviceId}
PUT /_matrix/client/v3/devices/{deviceId}
GET /_matrix/client/v3/directory/list/room/{roomId}
PUT /_matrix/client/v3/directory/list/room/{roomId}
DELETE /_matrix/client/v3/directory/room/{roomAlias}
GET /_matrix/client/v3/directory/room/{roomAlias}
PUT /_matrix/client/v3/directory/room/{roomAlias}
GET /_matrix/client/v3/events
GET /_matrix/client/v3/events/{eventId}
GET /_matrix/client/v3/initialSync
POST /_matrix/client/v3/join/{roomIdOrAlias}
GET /_matrix/client/v3/joined_rooms
POST /_matrix/client/v3/knock/{roomIdOrAlias}
GET /_matrix/client/v3/login
POST /_matrix/client/v3/login
POST /_matrix/client/v3/logout
POST /_matrix/client/v3/logout/all
GET /_matrix/client/v3/notifications
GET /_matrix/client/v3/presence/{userId}/status
PUT /_matrix/client/v3/presence/{userId}/status
GET /_matrix/client/v3/profile/{userId}
DELETE /_matrix/client/v3/profile/{userId}/{keyName}
GET /_matrix/client/v3/profile/{userId}/{keyName}
PUT /_matrix/client/v3/profile/{userId}/{keyName}
GET /_matrix/client/v3/publicRooms
POST /_matrix/client/v3/publicRooms
GET /_matrix/client/v3/pushers
POST /_matrix/client/v3/pushers/set
GET /_matrix/client/v3/pushrules/
GET /_matrix/client/v3/pushrules/global/
DELETE /_matrix/client/v3/pushrules/global/{kind}/{ruleId}
GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}
PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}
GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions
PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions
GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled
PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled
POST /_matrix/client/v3/refresh
POST /_matrix/client/v3/register
GET /_matrix/client/v3/register/available
GET /_matrix/client/v3/room_keys/version
GET /_matrix/client/v3/rooms/{roomId}/aliases
POST /_matrix/client/v3/rooms/{roomId}/ban
GET /_matrix/client/v3/rooms/{roomId}/context/{eventId}
GET /_matrix/client/v3/rooms/{roomId}/event/{eventId}
POST /_matrix/client/v3/rooms/{roomId}/forget
GET /_matrix/client/v3/rooms/{roomId}/initialSync
POST /_matrix/client/v3/rooms/{roomId}/invite
POST /_matrix/client/v3/rooms/{roomId}/join
GET /_matrix/client/v3/rooms/{roomId}/joined_members
POST /_matrix/client/v3/rooms/{roomId}/kick
POST /_matrix/client/v3/rooms/{roomId}/leave
GET /_matrix/client/v3/rooms/{roomId}/members
GET /_matrix/client/v3/rooms/{roomId}/messages
POST /_matrix/client/v3/rooms/{roomId}/read_markers
POST /_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}
PUT /_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}
POST /_matrix/client/v3/rooms/{roomId}/report
POST /_matrix/client/v3/rooms/{roomId}/report/{eventId}
PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}
GET /_matrix/client/v3/rooms/{roomId}/state
GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}
PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}
PUT /_matrix/client/v3/rooms/{roomId}/typing/{userId}
POST /_matrix/client/v3/rooms/{roomId}/unban
POST /_matrix/client/v3/rooms/{roomId}/upgrade
POST /_matrix/client/v3/search
GET /_matrix/client/v3/sync
GET /_matrix/client/v3/thirdparty/location
GET /_matrix/client/v3/thirdparty/location/{protocol}
GET /_matrix/client/v3/thirdparty/protocol/{protocol}
GET /_matrix/client/v3/thirdparty/protocols
GET /_matrix/client/v3/thirdparty/user
GET /_matrix/client/v3/thirdparty/user/{protocol}
GET /_matrix/client/v3/user/{userId}/account_data/{type}
PUT /_matrix/client/v3/user/{userId}/account_data/{type}
POST /_matrix/client/v3/user/{userId}/filter
GET /_matrix/client/v3/user/{userId}/filter/{filterId}
POST /_matrix/client/v3/user/{userId}/openid/request_token
GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}
PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}
GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags
DELETE /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}
PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}
POST /_matrix/client/v3/user_directory/search
POST /_matrix/client/v3/users/{userId}/report
GET /_matrix/client/v3/voip/turnServer
GET /_matrix/client/versions
"""

# feature -> its endpoints
NOT_YET = {
    "application services": """
        POST /_matrix/client/v1/appservice/{appserviceId}/ping
        PUT /_matrix/client/v3/directory/list/appservice/{networkId}/{roomId}
    """,
    "e-mail and telephone": """
        POST /_matrix/client/v3/account/3pid
        POST /_matrix/client/v3/account/3pid/add
        POST /_matrix/client/v3/account/3pid/bind
        POST /_matrix/client/v3/account/3pid/delete
        POST /_matrix/client/v3/account/3pid/email/requestToken
        POST /_matrix/client/v3/account/3pid/msisdn/requestToken
        POST /_matrix/client/v3/account/3pid/unbind
        POST /_matrix/client/v3/account/password/email/requestToken
        POST /_matrix/client/v3/account/password/msisdn/requestToken
        POST /_matrix/client/v3/register/email/requestToken
        POST /_matrix/client/v3/register/msisdn/requestToken
    """,
    "end-to-end encryption": """
        GET /_matrix/client/v3/keys/changes
        POST /_matrix/client/v3/keys/claim
        POST /_matrix/client/v3/keys/device_signing/upload
        POST /_matrix/client/v3/keys/query
        POST /_matrix/client/v3/keys/signatures/upload
        POST /_matrix/client/v3/keys/upload
        PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId}
    """,
    "key backup": """
        DELETE /_matrix/client/v3/room_keys/keys
        GET /_matrix/client/v3/room_keys/keys
        PUT /_matrix/client/v3/room_keys/keys
        DELETE /_matrix/client/v3/room_keys/keys/{roomId}
        GET /_matrix/client/v3/room_keys/keys/{roomId}
        PUT /_matrix/client/v3/room_keys/keys/{roomId}
        DELETE /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}
        GET /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}
        PUT /_matrix/client/v3/room_keys/keys/{roomId}/{sessionId}
        POST /_matrix/client/v3/room_keys/version
        DELETE /_matrix/client/v3/room_keys/version/{version}
        GET /_matrix/client/v3/room_keys/version/{version}
        PUT /_matrix/client/v3/room_keys/version/{version}
    """,
    "media": """
        GET /_matrix/client/v1/media/config
        GET /_matrix/client/v1/media/download/{serverName}/{mediaId}
        GET /_matrix/client/v1/media/download/{serverName}/{mediaId}/{fileName}
        GET /_matrix/client/v1/media/preview_url
        GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}
        POST /_matrix/media/v1/create
        GET /_matrix/media/v3/config
        GET /_matrix/media/v3/download/{serverName}/{mediaId}
        GET /_matrix/media/v3/download/{serverName}/{mediaId}/{fileName}
        GET /_matrix/media/v3/preview_url
        GET /_matrix/media/v3/thumbnail/{serverName}/{mediaId}
        POST /_matrix/media/v3/upload
        PUT /_matrix/media/v3/upload/{serverName}/{mediaId}
    """,
    "policy servers": """
        GET /.well-known/matrix/policy_server
    """,
    "single sign-on and OAuth": """
        GET /_matrix/client/v1/auth_metadata
        GET /_matrix/client/v3/login/sso/redirect
        GET /_matrix/client/v3/login/sso/redirect/{idpId}
    """,
}


def parse(text: str) -> list[tuple[str, str]]:
    """Return the (method, path) of each line."""
    return [(method, path) for method, path in (line.split() for line in text.split("\n") if line.strip())]
