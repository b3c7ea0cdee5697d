"""The HTTP API's parts. `oncue.dispatcher.http.app.make_app` puts them together.

request ──► table.py (which Route?) ──► exchange.py: token, limits, body, query ──► tasks.py, rules.py ... ──► Backend
answer  ◄── problems.py (RFC 9457)  ◄── one try/except ◄── a Struct, or a stream (streams.py)
"""
