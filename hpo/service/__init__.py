"""More than one process: the queue's workers, crews of them on this machine or on Ray, and the dashboard's server.

No process holds a state of its own: everything is in the storage, and each can be killed at any time.
"""
