"""Local users in rooms of other servers: joining, knocking, refusing invites, inviting.

template      what a make_* answer may say, and our own event made of it (nothing else is ever signed)
stripped      the room state that comes with invites and knocks
handshake     make_* and send_*, asked of one server after the other
answer        what send_join answered, checked
joins         a join as a durable job, its state imported into the RoomServer
completing    the members that send_join left out, fetched afterwards
memberships   leaves and knocks of rooms that we are not in, and the signature of an invited user's server
"""
