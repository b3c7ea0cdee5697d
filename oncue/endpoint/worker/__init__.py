"""The worker process: `python -m oncue.endpoint.worker`. It runs user functions."""
