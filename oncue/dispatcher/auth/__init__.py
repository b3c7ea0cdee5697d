"""Logins: credentials of a request -> Caller."""
