"""Telling other servers what happened here.

destinations  how each destination stands: failures, backoff, how far it has been told
"""
