"""The front doors: HTTP for clients, a unix socket for this machine's owner. Nothing else of the kernel listens.

`server.py` opens the ports, `public.py` and `admin.py` are what is behind them, `respond.py` turns a running program
into an answer, `errors.py` says what went wrong in OpenAI's words.
"""
