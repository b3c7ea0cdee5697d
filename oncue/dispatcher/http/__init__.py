"""The HTTP API. `oncue.dispatcher.http.app.make_app` builds it.

request ──► routes/table.py: the Route ──► handler.py: login, limits, body, query
        ──► routes/tasks.py ... ──► services
answer  ◄── problems.py (RFC 9457)  ◄── one try/except ◄── a Struct, or a stream (streams.py)
"""
