"""What applies OUTPUT entries, by purpose: functions that take the batch first; `consumer` dispatches to them.

batch          one batch: what it collects, the rooms it touches, what is written at its end
timeline       events of a room, what they change in its state, memberships of local users
notifications  whom an event notifies, counted; what counts as read
rooms          other entries about rooms: state rewritten, purges, outliers, redactions, receipts
users          entries about users: account data, forgotten rooms, devices, to-device messages
"""
