"""The endpoints that other servers call, one module for each group of them.

authentication  who is asking, by the request's signature
endpoints       a table of endpoints, and the way of each request
keys            our keys and those we know of others
version         who we are
send            transactions
memberships     being joined, left and knocked on; `restricted` says who may
invites         being invited
events          events, state and history of rooms
hierarchy       spaces
query           aliases and profiles
"""
