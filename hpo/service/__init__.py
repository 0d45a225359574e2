"""Service: workers of the queue, launches by several processes or on Ray, and the dashboard's server.

No process holds a state of its own: everything is in the storage, and each can be killed at any time.
"""
