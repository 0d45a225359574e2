"""Use the cores of a CPU: stacks that train at the same time, in processes or threads, and their memory allocator."""
