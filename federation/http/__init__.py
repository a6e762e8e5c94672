"""The endpoints that other servers call, one module for each group of them.

authentication  who is asking, by the request's signature
keys            our keys and those we know of others
version         who we are
"""
