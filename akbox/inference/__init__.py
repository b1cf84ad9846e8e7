"""Models for agents: an HTTP gateway that speaks the providers' own formats, meters every call and keeps the keys.

gateway.py serves, service.py gives it a life in a run; wire.py and the two provider modules know formats, sse.py
streams; routing.py, upstream.py the way out; metering.py and prices.py what it costs; call.py is INFERENCE. aiohttp is
loaded by service.py when a policy has upstreams, never before.
"""
