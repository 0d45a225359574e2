"""Service: workers of the queue, launches by several processes or on Ray, and the dashboard's server.

All state is in the storage, so each process can be killed at any time.
"""
